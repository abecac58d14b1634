"""The probes of a run and of the benchmarks: loaded, checked for length, split by text."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, get_args

from transformers import PreTrainedTokenizerBase

from grpo_ao.errors import UserError
from grpo_ao.files import text_digest
from grpo_ao.mini.probes import mini_probes
from grpo_ao.oracle.activations import select_positions, subject_token_ids
from grpo_ao.oracle.context import check_prompt, check_text, context_length
from grpo_ao.oracle.loading import load_config
from grpo_ao.oracle.prompt import build_oracle_prompt
from grpo_ao.oracle.spec import OracleSpec, load_spec
from grpo_ao.probe import Layers, Positions, Probe, Split, split_of, text_key, unit_draw
from grpo_ao.probes.benchmarks import Item
from grpo_ao.probes.division import divide
from grpo_ao.probes.rows import load_rows, probes_of

_MINI_QUESTIONS = 4  # of one text, as mini_probes asks them


@dataclass(frozen=True)
class ProbeLimits:
    """What a probe must fit into: a model's positions, with this oracle's prompt and answer."""

    tokenizer: PreTrainedTokenizerBase
    spec: OracleSpec
    positions: int
    max_new_tokens: int

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, model: str, adapter: str, max_new_tokens: int
    ) -> "ProbeLimits":
        """Read the positions from the model's configuration, the prompt from the adapter's."""
        return cls(
            tokenizer, load_spec(adapter), context_length(load_config(model)), max_new_tokens
        )

    def check(self, probe: Probe, text_tokens: int) -> None:
        """Raise UserError where the probe's text, or its prompt and the answer, do not fit."""
        check_text(self.positions, text_tokens, probe.text)
        chosen = select_positions(self.tokenizer, range(text_tokens), probe.positions, probe.text)
        count = len(chosen) * len(probe.layers)
        # No token stands for less than a byte, so that few prompts have to be tokenised.
        placeholders = count * len(self.spec.special_token.encode())
        question = len(probe.question.encode("utf-8", "surrogatepass"))
        if (
            self._around * len(probe.layers) + placeholders + question + self.max_new_tokens
            > self.positions
        ):
            ids = build_oracle_prompt(
                self.tokenizer, probe.layers, count, probe.question, self.spec
            ).input_ids
            check_prompt(self.positions, len(ids), self.max_new_tokens, probe.question)

    @cached_property
    def _around(self) -> int:
        return len(build_oracle_prompt(self.tokenizer, (100,), 1, "?", self.spec).text.encode())


class RunProbes(NamedTuple):
    """The probes of a run, each list about texts of its own."""

    warm_start: list[Probe]
    grpo: list[Probe]
    validation: list[Probe]
    heldout: list[Probe]


def load_probes(
    questions: str,
    limits: ProbeLimits,
    layers: Sequence[Layers],
    positions: Positions,
    warm_start: int,
    grpo: int,
    validation: int,
    heldout: int,
    heldout_questions: str | None = None,
    train_texts: int | None = None,
    strict: bool = False,
    strict_positions: bool = False,
    report: Callable[[str], None] = print,
) -> RunProbes:
    """Return the probes of each stage, which asks for so many; what cannot be used is reported.

    The mini world makes them. A question set's texts come in the order of a draw, since a file may
    be sorted by family. Its training texts, or the first ``train_texts`` of them, are divided
    between the warm start and GRPO (``division``): all that they have.
    ``heldout_questions`` is a set of its own to hold out, instead of a fifth of the texts.
    ``strict`` refuses a broken row and a probe that is beyond ``limits``,
    ``strict_positions`` a text that has fewer tokens than are read.
    """

    def usable(probes: Sequence[Probe]) -> list[Probe]:
        lengths = _lengths(limits.tokenizer, probes)
        long_enough = _long_enough(limits.tokenizer, lengths, probes, strict_positions, report)
        return _fitting(limits, lengths, long_enough, strict, report)

    def of_set(source: str) -> list[Probe]:
        loaded = load_rows(source, strict)
        for problem in loaded.problems:
            report(problem)
        probes = usable(probes_of(loaded.rows, layers, positions))
        return sorted(probes, key=lambda probe: unit_draw("order", text_key(probe.text)))

    own = of_set(heldout_questions) if heldout_questions else []
    if questions == "mini":
        asked, most = warm_start + grpo, _MINI_QUESTIONS * (train_texts or sys.maxsize)
        if asked > most:
            warm_start, grpo = most * warm_start // asked, most * grpo // asked
        # The warm start may end inside of a text, whose other questions are left to none.
        counts = (warm_start, grpo)
        made = mini_probes("train", sum(counts) + _MINI_QUESTIONS, layers, positions)
        first, second = map(usable, _in_turn(made, counts))
        checked = usable(mini_probes("validation", validation, layers, positions))
        held = own[:heldout] or usable(mini_probes("heldout", heldout, layers, positions))
        return RunProbes(first, second, checked, held)
    of_split = _of_split(of_set(questions), own)
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
    first, second = ([train[row] for row in rows] for rows in divide(train, warm_start, grpo))
    rest = (of_split["validation"][:validation], of_split["heldout"][:heldout])
    return RunProbes(first, second, *rest)


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


def _lengths(tokenizer: PreTrainedTokenizerBase, probes: Sequence[Probe]) -> dict[str, int]:
    return {text: len(subject_token_ids(tokenizer, text)) for text in {p.text for p in probes}}


def _long_enough(
    tokenizer: PreTrainedTokenizerBase,
    lengths: Mapping[str, int],
    probes: Sequence[Probe],
    strict: bool,
    report: Callable[[str], None],
) -> list[Probe]:
    """Say which texts have fewer tokens than are read; leave out those of which none can be."""
    kept, cut, first_problem = [], 0, ""
    for probe in probes:
        where, token_ids = probe.positions, range(lengths[probe.text])
        try:
            chosen = select_positions(tokenizer, token_ids, where, probe.text, strict)
        except ValueError as error:
            if strict:
                raise UserError(str(error)) from error
            first_problem = first_problem or str(error)
            continue
        cut += where.count is not None and len(chosen) < where.count
        kept.append(probe)
    if cut:
        report(
            f"{cut} probes have texts shorter than '{kept[0].positions}': they are read from the "
            "beginning of the text (--strict_positions makes this an error)."
        )
    if first_problem:
        left_out = len(probes) - len(kept)
        report(f"{left_out} probes are left out. The first: {first_problem}")
    if probes and not kept:
        raise UserError(f"no probe can be read. The first: {first_problem}")
    return kept


def _fitting(
    limits: ProbeLimits,
    lengths: Mapping[str, int],
    probes: Sequence[Probe],
    strict: bool,
    report: Callable[[str], None],
) -> list[Probe]:
    """Leave out, and say, the probes that the model has too few positions for."""
    kept, first_problem = [], ""
    for probe in probes:
        try:
            limits.check(probe, lengths[probe.text])
        except UserError as error:
            if strict:
                raise
            first_problem = first_problem or str(error)
            continue
        kept.append(probe)
    if first_problem:
        left_out = len(probes) - len(kept)
        if not kept:
            raise UserError(f"no probe fits into the model. The first: {first_problem}")
        report(f"{left_out} probes are left out. The first: {first_problem}")
    return kept


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
        drawn = layers[int(unit_draw("layer", item.text, item.question) * len(layers))]
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
    tokenizer = all_limits[0].tokenizer
    lengths = _lengths(tokenizer, probes)
    for probe in probes:
        select_positions(tokenizer, range(lengths[probe.text]), probe.positions, probe.text)
    for limits in all_limits:
        probes = _fitting(limits, lengths, probes, strict, report)
    return list(probes)


def data_digest(probes: Sequence[Probe]) -> str:
    """Hash all of the probes that training or measurement depends on, references too."""
    return text_digest(
        [" ".join((p.id, p.kind, p.family, str(p.reference), *p.choices)) for p in probes]
    )
