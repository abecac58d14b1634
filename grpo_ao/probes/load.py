"""The probes of a run and of the benchmarks: loaded, checked for length, split by text."""

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import AutoConfig, PreTrainedTokenizerBase

from grpo_ao.errors import UserError
from grpo_ao.files import text_digest
from grpo_ao.mini.probes import mini_probes
from grpo_ao.oracle.activations import select_positions, subject_token_ids
from grpo_ao.oracle.layers import num_decoder_layers
from grpo_ao.probe import Positions, Probe, split_of, unit_draw
from grpo_ao.probes.benchmarks import Item
from grpo_ao.probes.rows import load_rows, probes_of


def num_layers_of(base_folder: Path) -> int:
    """Read the number of decoder layers from a model's configuration alone."""
    return num_decoder_layers(AutoConfig.from_pretrained(base_folder))


def load_probes(
    questions: str,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[int],
    positions: Positions,
    train_probes: int,
    heldout_probes: int,
    train_texts: int | None = None,
    strict: bool = False,
    strict_positions: bool = False,
    report: Callable[[str], None] = print,
) -> tuple[list[Probe], list[Probe]]:
    """Return training and held-out probes; rows and texts that cannot be used are reported.

    ``train_probes`` is how many the mini world makes; a question set gives all that it has of its
    first ``train_texts`` training texts. ``strict`` refuses a broken row, ``strict_positions`` a
    text that has fewer tokens than are read.
    """

    def long_enough(probes: list[Probe]) -> list[Probe]:
        return _long_enough(tokenizer, probes, strict_positions, report)

    if questions == "mini":
        train = mini_probes("train", train_probes, layers, positions)
        heldout = mini_probes("heldout", heldout_probes, layers, positions)
        return long_enough(train), long_enough(heldout)
    loaded = load_rows(questions, strict)
    for problem in loaded.problems:
        report(problem)
    probes = long_enough(probes_of(loaded.rows, layers, positions))
    train = [p for p in probes if split_of(p.text) == "train"]
    if train_texts is not None:
        texts = set(list(dict.fromkeys(p.text for p in train))[:train_texts])
        train = [p for p in train if p.text in texts]
    heldout = [p for p in probes if split_of(p.text) == "heldout"]
    if not train or not heldout:
        raise UserError(
            f"{questions} leaves {len(train)} training and {len(heldout)} held-out probes: "
            "both are needed, so give a larger question set."
        )
    return train, heldout[:heldout_probes]


def _long_enough(
    tokenizer: PreTrainedTokenizerBase,
    probes: list[Probe],
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
    if not kept:
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
