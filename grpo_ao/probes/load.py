"""The probes of a run and of the benchmarks: loaded, checked for length, split by text."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from transformers import AutoConfig, PreTrainedTokenizerBase

from grpo_ao.errors import UserError
from grpo_ao.files import text_digest
from grpo_ao.mini.probes import mini_probes
from grpo_ao.oracle.activations import select_positions, subject_token_ids
from grpo_ao.oracle.layers import num_decoder_layers
from grpo_ao.probe import Positions, Probe, Split, split_of, unit_draw
from grpo_ao.probes.benchmarks import Item
from grpo_ao.probes.division import divide
from grpo_ao.probes.rows import load_rows, probes_of


def num_layers_of(base_folder: Path) -> int:
    """Read the number of decoder layers from a model's configuration alone."""
    return num_decoder_layers(AutoConfig.from_pretrained(base_folder))


_MINI_QUESTIONS = 4  # of one text, as mini_probes asks them


class RunProbes(NamedTuple):
    """The probes of a run, each list about texts of its own."""

    warm_start: list[Probe]
    grpo: list[Probe]
    validation: list[Probe]
    heldout: list[Probe]


def load_probes(
    questions: str,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[int],
    positions: Positions,
    warm_start: int,
    grpo: int,
    validation: int,
    heldout: int,
    train_texts: int | None = None,
    strict: bool = False,
    strict_positions: bool = False,
    report: Callable[[str], None] = print,
) -> RunProbes:
    """Return the probes of each stage, which asks for so many; what cannot be used is reported.

    The mini world makes them. A question set's training texts, or the first ``train_texts`` of
    them, are divided between the warm start and GRPO (``division``): all that they have.
    ``strict`` refuses a broken row, ``strict_positions`` a text that has fewer tokens than are
    read.
    """

    def long_enough(probes: Sequence[Probe]) -> list[Probe]:
        return _long_enough(tokenizer, probes, strict_positions, report)

    if questions == "mini":
        asked, most = warm_start + grpo, _MINI_QUESTIONS * (train_texts or sys.maxsize)
        if asked > most:
            warm_start, grpo = most * warm_start // asked, most * grpo // asked
        # The warm start may end inside of a text, whose other questions are left to none.
        counts = (warm_start, grpo)
        made = mini_probes("train", sum(counts) + _MINI_QUESTIONS, layers, positions)
        found = [
            *_in_turn(made, counts),
            mini_probes("validation", validation, layers, positions),
            mini_probes("heldout", heldout, layers, positions),
        ]
        return RunProbes._make(long_enough(probes) for probes in found)
    loaded = load_rows(questions, strict)
    for problem in loaded.problems:
        report(problem)
    probes = long_enough(probes_of(loaded.rows, layers, positions))
    of_split = {name: [p for p in probes if split_of(p.text) == name] for name in get_args(Split)}
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


def _in_turn(probes: Sequence[Probe], counts: Sequence[int]) -> Iterator[Sequence[Probe]]:
    """Take so many probes after one another, none of a text that was taken from before."""
    for count in counts:
        taken = probes[:count]
        texts = {probe.text for probe in taken}
        yield taken
        probes = [probe for probe in probes[count:] if probe.text not in texts]


def _long_enough(
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Probe],
    strict: bool,
    report: Callable[[str], None],
) -> list[Probe]:
    """Say which texts have fewer tokens than are read; leave out those of which none can be."""
    lengths = {text: len(subject_token_ids(tokenizer, text)) for text in {p.text for p in probes}}
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


def probes_of_items(
    items: Sequence[Item], layers: Sequence[int], positions: Sequence[Positions], one_layer: bool
) -> list[Probe]:
    """Make the probes of each benchmark item: at each of ``positions``, at each layer.

    ``one_layer``: at one layer, drawn by a hash of text and question.
    """
    probes = []
    for item in items:
        drawn = layers[int(unit_draw("layer", item.text, item.question) * len(layers))]
        for where in positions:
            for layer in [drawn] if one_layer else layers:
                of_item = (item.text, item.question, "closed", layer, where)
                probes.append(Probe(*of_item, item.target, item.benchmark))
    return probes


def check_lengths(tokenizer: PreTrainedTokenizerBase, probes: Sequence[Probe]) -> None:
    """Raise UserError for the first text that is too short for the positions read of it."""
    lengths = {text: len(subject_token_ids(tokenizer, text)) for text in {p.text for p in probes}}
    for probe in probes:
        select_positions(tokenizer, range(lengths[probe.text]), probe.positions, probe.text)


def data_digest(probes: Sequence[Probe]) -> str:
    """Hash all of the probes that training or measurement depends on, references too."""
    return text_digest([f"{p.id} {p.kind} {p.family} {p.reference}" for p in probes])
