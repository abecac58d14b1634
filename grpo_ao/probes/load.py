"""The probes of a run: question sets, checked for length and split by text."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

from grpo_ao.errors import UserError
from grpo_ao.files import text_digest
from grpo_ao.mini.probes import PER_TEXT, mini_probes
from grpo_ao.probe import Layers, Positions, Probe, Split, split_of, unit_draw
from grpo_ao.probes.division import divide
from grpo_ao.probes.items import probes_of
from grpo_ao.probes.limits import ProbeLimits, readable
from grpo_ao.probes.rows import items_of, load_rows


class RunProbes(NamedTuple):
    """The probes of a run, each list about texts of its own."""

    warm_start: list[Probe]
    grpo: list[Probe]
    validation: list[Probe]
    heldout: list[Probe]


class Asked(NamedTuple):
    """How many probes each stage of a run asks for."""

    warm_start: int
    grpo: int
    validation: int
    heldout: int


@dataclass(frozen=True)
class ProbeLoader:
    """Loads a run's probes, which read one of ``layers`` each, at ``positions``.

    What cannot be used is left out and told to ``report``. With ``strict`` a broken row and a probe
    beyond ``limits`` are errors, with ``strict_positions`` a text of fewer tokens than are read.
    """

    limits: ProbeLimits
    layers: Sequence[Layers]
    positions: Positions
    strict: bool = False
    strict_positions: bool = False
    report: Callable[[str], None] = print

    def load(
        self,
        questions: str,
        asked: Asked,
        heldout_questions: str | None = None,
        train_texts: int | None = None,
    ) -> RunProbes:
        """Return the probes of each stage, of a question set or made from the mini world.

        All questions about a set's training texts, or about the first ``train_texts`` of these, are
        divided between the warm start and GRPO (``division``); validation and held-out probes are
        as many as are asked for. ``heldout_questions`` is a set to hold out instead of a fifth of
        the texts.
        """
        own = self._of_set(heldout_questions) if heldout_questions else []
        if questions == "mini":
            return self._of_mini_world(asked, train_texts, own)
        of_split = _of_split(self._of_set(questions), own)
        if not all(of_split.values()):
            texts = {name: {p.text_key for p in found} for name, found in of_split.items()}
            counts = ", ".join(f"{len(keys)} {name}" for name, keys in texts.items())
            raise UserError(
                f"{questions} leaves probes of {counts} texts: all are needed, so give a larger "
                "question set."
            )
        train = of_split["train"]
        if train_texts is not None:
            texts = set(list(dict.fromkeys(probe.text_key for probe in train))[:train_texts])
            train = [probe for probe in train if probe.text_key in texts]
        divided = divide(train, asked.warm_start, asked.grpo)
        first, second = ([train[row] for row in rows] for rows in divided)
        rest = (of_split["validation"][: asked.validation], of_split["heldout"][: asked.heldout])
        return RunProbes(first, second, *rest)

    def _of_set(self, source: str) -> list[Probe]:
        """Load a set's probes, texts in an order drawn by hash: a file may be sorted by family."""
        loaded = load_rows(source, self.strict)
        for problem in loaded.problems:
            self.report(problem)
        probes = probes_of(items_of(loaded.rows), self.layers, [self.positions])
        return sorted(self._usable(probes), key=lambda probe: unit_draw("order", probe.text_key))

    def _of_mini_world(
        self, asked: Asked, train_texts: int | None, own: Sequence[Probe]
    ) -> RunProbes:
        held_out = {probe.text_key for probe in own}

        def made(split: Split, count: int) -> list[Probe]:
            more = PER_TEXT * len(held_out)  # in place of those that may be left out
            probes = mini_probes(split, count + more, self.layers, self.positions)
            return [probe for probe in probes if probe.text_key not in held_out][:count]

        train = max(1, asked.warm_start + asked.grpo)
        most = min(train, PER_TEXT * (train_texts or sys.maxsize))
        counts = [count * most // train for count in (asked.warm_start, asked.grpo)]
        # The warm start may end inside a text, whose other questions no stage asks.
        in_turn = _in_turn(made("train", sum(counts) + PER_TEXT), counts)
        first, second = map(self._usable, in_turn)
        checked = self._usable(made("validation", asked.validation))
        heldout = list(own[: asked.heldout]) or self._usable(made("heldout", asked.heldout))
        return RunProbes(first, second, checked, heldout)

    def _usable(self, probes: Sequence[Probe]) -> list[Probe]:
        """Leave out what cannot be read or does not fit; say how many texts are read in part."""
        kept = readable(
            [self.limits], probes, self.strict, self.strict_positions, report=self.report
        )
        count, texts = self.positions.count or 0, self.limits.texts
        cut = sum(len(texts.positions_read(probe)) < count for probe in kept)
        if cut:
            self.report(
                f"{cut} probes have texts shorter than '{self.positions}': they are read from the "
                "beginning of the text (--strict_positions makes this an error)."
            )
        return kept


def _of_split(probes: Sequence[Probe], own: Sequence[Probe]) -> dict[Split, list[Probe]]:
    """Divide probes by their texts; ``own`` are held out where there are any, and no others."""
    of_split: dict[Split, list[Probe]] = {name: [] for name in get_args(Split)}
    taken = {probe.text_key for probe in own}
    for probe in probes:
        split = split_of(probe.text)
        if probe.text_key not in taken:
            of_split["train" if own and split == "heldout" else split].append(probe)
    if own:
        of_split["heldout"] = list(own)
    return of_split


def _in_turn(probes: Sequence[Probe], counts: Sequence[int]) -> Iterator[Sequence[Probe]]:
    """Take ``counts`` of the probes in turn, each time of texts that were not taken from before."""
    for count in counts:
        taken = probes[:count]
        texts = {probe.text_key for probe in taken}
        yield taken
        probes = [probe for probe in probes[count:] if probe.text_key not in texts]


def data_digest(probes: Sequence[Probe]) -> str:
    """Hash all of the probes that training or measurement depends on, references too."""
    return text_digest(
        [" ".join((p.id, p.kind, p.family, str(p.reference), *p.choices)) for p in probes]
    )
