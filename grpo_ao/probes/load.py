"""The probes of a run: loaded, checked for length, split by text."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from transformers import AutoConfig

from grpo_ao.config import TrainConfig
from grpo_ao.errors import UserError
from grpo_ao.files import text_digest
from grpo_ao.mini.probes import mini_probes
from grpo_ao.oracle.activations import select_positions, subject_token_ids
from grpo_ao.oracle.layers import layer_index, num_decoder_layers
from grpo_ao.oracle.loading import load_tokenizer
from grpo_ao.probe import Positions, Probe, split_of
from grpo_ao.probes.rows import load_rows, probes_of


def num_layers_of(base_folder: Path) -> int:
    """Read the number of decoder layers from a model's configuration alone."""
    return num_decoder_layers(AutoConfig.from_pretrained(base_folder))


def load_probes(
    config: TrainConfig, console: Console, num_layers: int
) -> tuple[list[Probe], list[Probe]]:
    """Return training and held-out probes; rows and texts that cannot be used are reported."""
    layers = [layer_index(num_layers, percent) for percent in config.layer_percents]
    positions = Positions.parse(config.positions)
    if config.questions == "mini":
        count = max(config.warm_start_probes, config.max_steps * config.questions_per_step)
        count = min(count, (config.num_prompts or count) * 4)
        train = mini_probes("train", count, layers, positions)
        heldout = mini_probes("heldout", config.eval_probes, layers, positions)
        return _long_enough(config, train, console), _long_enough(config, heldout, console)
    loaded = load_rows(config.questions, config.strict)
    for problem in loaded.problems:
        console.print(problem)
    probes = probes_of(loaded.rows, layers, positions)
    probes = _long_enough(config, probes, console)
    train = [p for p in probes if split_of(p.text) == "train"]
    if config.num_prompts is not None:
        texts = list(dict.fromkeys(p.text for p in train))[: config.num_prompts]
        train = [p for p in train if p.text in set(texts)]
    heldout = [p for p in probes if split_of(p.text) == "heldout"]
    if not train or not heldout:
        raise UserError(
            f"{config.questions} leaves {len(train)} training and {len(heldout)} held-out probes: "
            "both are needed, so give a larger question set."
        )
    return train, heldout[: config.eval_probes]


def _long_enough(config: TrainConfig, probes: list[Probe], console: Console) -> list[Probe]:
    """Say which texts have fewer tokens than are read; leave out those of which none can be."""
    tokenizer = load_tokenizer(config.model, None)
    lengths = {text: len(subject_token_ids(tokenizer, text)) for text in {p.text for p in probes}}
    kept, cut, first_problem = [], 0, ""
    for probe in probes:
        token_ids = range(lengths[probe.text])
        try:
            chosen = select_positions(
                tokenizer, token_ids, probe.positions, probe.text, config.strict_positions
            )
        except ValueError as error:
            if config.strict_positions:
                raise UserError(str(error)) from error
            first_problem = first_problem or str(error)
            continue
        cut += probe.positions.count is not None and len(chosen) < probe.positions.count
        kept.append(probe)
    if cut:
        console.print(
            f"{cut} probes have texts shorter than '{config.positions}': they are read from the "
            "beginning of the text (--strict_positions makes this an error)."
        )
    if first_problem:
        left_out = len(probes) - len(kept)
        console.print(f"{left_out} probes are left out. The first: {first_problem}")
    if not kept:
        raise UserError(f"no probe can be read. The first: {first_problem}")
    return kept


def data_digest(probes: Sequence[Probe]) -> str:
    """Hash all of the probes that training or measurement depends on, references too."""
    return text_digest([f"{p.id} {p.kind} {p.family} {p.reference}" for p in probes])
