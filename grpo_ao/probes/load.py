"""The probes of a run and of the benchmarks: loaded, checked for length, split by text."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, get_args

from grpo_ao.errors import UserError
from grpo_ao.files import text_digest
from grpo_ao.mini.probes import PER_TEXT, mini_probes
from grpo_ao.oracle.activations import SubjectTexts
from grpo_ao.oracle.context import check_prompt, check_text, context_length
from grpo_ao.oracle.loading import load_config
from grpo_ao.oracle.prompt import build_oracle_prompt
from grpo_ao.oracle.spec import OracleSpec, load_spec
from grpo_ao.probe import Layers, Positions, Probe, Split, drawn_from, split_of, text_key, unit_draw
from grpo_ao.probes.benchmarks import Item
from grpo_ao.probes.division import divide
from grpo_ao.probes.rows import load_rows, probes_of


@dataclass(frozen=True)
class ProbeLimits:
    """What a probe must fit into: a model's positions, with this oracle's prompt and answer."""

    texts: SubjectTexts
    spec: OracleSpec
    positions: int
    max_new_tokens: int

    @classmethod
    def of(
        cls, texts: SubjectTexts, model: str, adapter: str | Path, max_new_tokens: int
    ) -> "ProbeLimits":
        """Read the positions from the model's configuration, the prompt from the adapter's."""
        return cls(texts, load_spec(adapter), context_length(load_config(model)), max_new_tokens)

    def check(self, probe: Probe) -> None:
        """Raise UserError where the probe's text, or its prompt and the answer, do not fit."""
        check_text(self.positions, len(self.texts[probe.text]), probe.text)
        count = len(self.texts.positions_read(probe)) * len(probe.layers)
        # No token stands for less than a byte, so that few prompts have to be tokenised.
        placeholders = count * len(self.spec.special_token.encode())
        question = len(probe.question.encode("utf-8", "surrogatepass"))
        if (
            self._around * len(probe.layers) + placeholders + question + self.max_new_tokens
            > self.positions
        ):
            ids = build_oracle_prompt(
                self.texts.tokenizer, probe.layers, count, probe.question, self.spec
            ).input_ids
            check_prompt(self.positions, len(ids), self.max_new_tokens, probe.question)

    @cached_property
    def _around(self) -> int:
        return len(
            build_oracle_prompt(self.texts.tokenizer, (100,), 1, "?", self.spec).text.encode()
        )


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
    """Loads the probes of question sets: at which layers and positions, and how strictly.

    What cannot be used is left out and told to ``report``. ``strict`` refuses a broken row and a
    probe that is beyond ``limits``, ``strict_positions`` a text that has fewer tokens than are
    read.
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
        """Return the probes of each stage; the mini world makes them.

        A question set's training texts, or the first ``train_texts`` of them, are divided between
        the warm start and GRPO (``division``): all that they have. ``heldout_questions`` is a set
        of its own to hold out, instead of a fifth of the texts.
        """
        own = self._of_set(heldout_questions) if heldout_questions else []
        if questions == "mini":
            return self._of_mini_world(asked, train_texts, own)
        of_split = _of_split(self._of_set(questions), own)
        if not all(of_split.values()):
            counts = ", ".join(f"{len(found)} {name}" for name, found in of_split.items())
            raise UserError(
                f"{questions} leaves probes of {counts} texts: all are needed, so give a larger "
                "question set."
            )
        train = of_split["train"]
        if train_texts is not None:
            texts = set(list(dict.fromkeys(p.text for p in train))[:train_texts])
            train = [p for p in train if p.text in texts]
        divided = divide(train, asked.warm_start, asked.grpo)
        first, second = ([train[row] for row in rows] for rows in divided)
        rest = (of_split["validation"][: asked.validation], of_split["heldout"][: asked.heldout])
        return RunProbes(first, second, *rest)

    def _of_set(self, source: str) -> list[Probe]:
        """Load a set's probes, its texts in the order of a draw: a file may be sorted by family."""
        loaded = load_rows(source, self.strict)
        for problem in loaded.problems:
            self.report(problem)
        probes = self._usable(probes_of(loaded.rows, self.layers, self.positions))
        return sorted(probes, key=lambda probe: unit_draw("order", text_key(probe.text)))

    def _of_mini_world(
        self, asked: Asked, train_texts: int | None, own: Sequence[Probe]
    ) -> RunProbes:
        def made(split: Split, count: int) -> list[Probe]:
            return mini_probes(split, count, self.layers, self.positions)

        train = max(1, asked.warm_start + asked.grpo)
        most = min(train, PER_TEXT * (train_texts or sys.maxsize))
        counts = [count * most // train for count in (asked.warm_start, asked.grpo)]
        # The warm start may end inside of a text, whose other questions are left to none.
        in_turn = _in_turn(made("train", sum(counts) + PER_TEXT), counts)
        first, second = map(self._usable, in_turn)
        checked = self._usable(made("validation", asked.validation))
        heldout = list(own[: asked.heldout]) or self._usable(made("heldout", asked.heldout))
        return RunProbes(first, second, checked, heldout)

    def _usable(self, probes: Sequence[Probe]) -> list[Probe]:
        """Say which texts have fewer tokens than are read; leave out what cannot be read."""
        texts, where = self.limits.texts, self.positions
        check = partial(texts.positions_read, strict=self.strict_positions)
        kept = _kept(probes, check, self.strict_positions, self.report, "no probe can be read")
        cut = sum(len(texts.positions_read(probe)) < (where.count or 0) for probe in kept)
        if cut:
            self.report(
                f"{cut} probes have texts shorter than '{where}': they are read from the "
                "beginning of the text (--strict_positions makes this an error)."
            )
        return _fitting(self.limits, kept, self.strict, self.report)


def _of_split(probes: Sequence[Probe], own: Sequence[Probe]) -> dict[Split, list[Probe]]:
    """Divide probes by their texts; ``own`` are held out where there are any, and no others."""
    of_split: dict[Split, list[Probe]] = {name: [] for name in get_args(Split)}
    taken = {text_key(probe.text) for probe in own}
    for probe in probes:
        split = split_of(probe.text)
        if text_key(probe.text) not in taken:
            of_split["train" if own and split == "heldout" else split].append(probe)
    if own:
        of_split["heldout"] = list(own)
    return of_split


def _in_turn(probes: Sequence[Probe], counts: Sequence[int]) -> Iterator[Sequence[Probe]]:
    """Take so many probes after one another, none of a text that was taken from before."""
    for count in counts:
        taken = probes[:count]
        texts = {probe.text for probe in taken}
        yield taken
        probes = [probe for probe in probes[count:] if probe.text not in texts]


def _kept(
    probes: Sequence[Probe],
    check: Callable[[Probe], object],
    strict: bool,
    report: Callable[[str], None],
    none_left: str,
) -> list[Probe]:
    """Leave out, and say, the probes that ``check`` refuses; UserError where that is all."""
    kept, first_problem = [], ""
    for probe in probes:
        try:
            check(probe)
        except UserError as error:
            if strict:
                raise
            first_problem = first_problem or str(error)
            continue
        kept.append(probe)
    if first_problem and not kept:
        raise UserError(f"{none_left}. The first: {first_problem}")
    if first_problem:
        left_out = len(probes) - len(kept)
        report(f"{left_out} probes are left out. The first: {first_problem}")
    return kept


def _fitting(
    limits: ProbeLimits, probes: Sequence[Probe], strict: bool, report: Callable[[str], None]
) -> list[Probe]:
    return _kept(probes, limits.check, strict, report, "no probe fits into the model")


def probes_of_items(
    items: Sequence[Item],
    layers: Sequence[Layers],
    positions: Sequence[Positions],
    one_layer: bool,
) -> list[Probe]:
    """Make the probes of each benchmark item: at each of ``positions``, at each of ``layers``.

    ``one_layer``: at one of ``layers``, drawn by a hash of text and question.
    """
    probes = []
    for item in items:
        drawn = drawn_from(layers, "layer", item.text, item.question)
        for where in positions:
            for read in [drawn] if one_layer else layers:
                of_item = (item.text, item.question, item.kind, read, where)
                probes.append(Probe(*of_item, item.target, item.benchmark, item.choices))
    return probes


def readable(
    all_limits: Sequence[ProbeLimits],
    probes: Sequence[Probe],
    strict: bool = False,
    report: Callable[[str], None] = print,
) -> list[Probe]:
    """Return the probes that fit within all of ``all_limits``, of one model; report the others.

    Raises UserError for the first text that is too short for the positions read of it and, with
    ``strict``, for the first probe that does not fit.
    """
    for probe in probes:
        all_limits[0].texts.positions_read(probe)
    for limits in all_limits:
        probes = _fitting(limits, probes, strict, report)
    return list(probes)


def data_digest(probes: Sequence[Probe]) -> str:
    """Hash all of the probes that training or measurement depends on, references too."""
    return text_digest(
        [" ".join((p.id, p.kind, p.family, str(p.reference), *p.choices)) for p in probes]
    )
