"""What a run asks of machine, disk and judge: ``grpo-ao budget`` with the flags of a run.

Reads the question set and the model's configuration, no weights. Counts completions and grades
from the flags, bytes from the shapes. Hours are derived from times that you give, measured on the
card at hand (``--step_seconds`` and so on, see docs/running_at_8b.md); a run is what tells them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from peft import LoraConfig, PeftModel
from rich.table import Table

from grpo_ao.config import TrainConfig
from grpo_ao.measuring.confidences import AGREEMENT_SAMPLES
from grpo_ao.oracle.activations import SubjectTexts
from grpo_ao.oracle.hub import resolve_files
from grpo_ao.oracle.layers import hidden_width
from grpo_ao.oracle.loading import (
    ADAPTER_FILES,
    adapter_config,
    load_config,
    load_tokenizer,
    meta_model,
)
from grpo_ao.prepare import probes_of_run, questions_asked
from grpo_ao.probe import Probe
from grpo_ao.run import CHECKED, CONTROL_PROBES, SAMPLED_PROBES
from grpo_ao.terminal import terminal


class Work(NamedTuple):
    """What a run does: counts by name, the vectors that it keeps, completions outside of GRPO."""

    counts: dict[str, int]
    vectors_kept: int
    outside: int


def work_of(config: TrainConfig) -> Work:
    """Count what a run of these flags does, from its question set."""
    texts = SubjectTexts(load_tokenizer(config.model))
    probes, benchmarks = probes_of_run(config, texts, terminal())
    train, heldout = [*probes.warm_start, *probes.grpo], probes.heldout
    validations = 1 + -(-config.max_steps // config.save_steps) if config.max_steps else 0
    asked = min(questions_asked(config)[0], len(probes.warm_start))
    checks = (2 if asked else 0) + (1 if config.max_steps else 0)
    measurements = 2 + 2 * config.initial_eval + measures_warm_start(config)
    graded = {
        "completions for the warm start": asked,
        "completions to check the oracle": checks * min(CHECKED, len(train)),
        "completions to measure before and after": len(heldout) * measurements
        + validations * len(probes.validation),
        # Another text's, and noise.
        "completions on other activations": 2 * min(len(heldout), CONTROL_PROBES),
    }
    ungraded = {
        "completions for the baselines": min(len(heldout), SAMPLED_PROBES) * AGREEMENT_SAMPLES,
        "completions on the benchmarks": len(benchmarks) * times_benchmarked(config),
    }
    grpo = config.max_steps * config.questions_per_step * config.num_generations
    counts = {
        "training texts": len({p.text_key for p in train}),
        "training probes": len(train),
        "held-out probes": len(heldout),
        **graded,
        **ungraded,
        "completions in GRPO": grpo,
        "grades at most (an answer graded before is free)": sum(graded.values()) + grpo,
    }
    stores = (train, probes.validation, heldout, benchmarks)
    kept = sum(vectors_of(texts, stored) for stored in stores)
    return Work(counts, kept, sum((graded | ungraded).values()))


def vectors_of(texts: SubjectTexts, probes: Sequence[Probe]) -> int:
    """Count the vectors in the store of these probes, which has what several read once."""
    reads = {(probe.text, probe.layers, probe.positions): probe for probe in probes}
    return sum(len(p.layers) * len(texts.positions_read(p)) for p in reads.values())


def times_benchmarked(config: TrainConfig) -> int:
    """Return how often the benchmarks are asked."""
    during = max(config.max_steps - 1, 0) // config.eval_steps
    return 1 + config.initial_eval + measures_warm_start(config) + during


def measures_warm_start(config: TrainConfig) -> bool:
    """Say whether a run measures what the warm start alone has made."""
    return config.initial_eval and config.warm_start != "none" and config.max_steps > 0


def parameter_counts(config: TrainConfig) -> tuple[int, int]:
    """Return the numbers of weights of the base and of an all-linear adapter like the oracle's."""
    base = meta_model(load_config(config.model))
    count = sum(p.numel() for p in base.parameters())
    rank = adapter_config(resolve_files(config.oracle_lora_path, ADAPTER_FILES)).r
    lora = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = PeftModel(base, lora, low_cpu_mem_usage=True)
    return count, sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)


def work_table(work: Work) -> Table:
    """Lay out the counts."""
    table = Table("", "number", title="derived from the flags and the question set")
    for name, number in work.counts.items():
        table.add_row(name, f"{number:,}")
    return table


def bytes_table(config: TrainConfig, work: Work) -> Table:
    """Lay out the bytes that weights, optimizer, checkpoints and activations take."""
    base, adapter = parameter_counts(config)
    width = hidden_width(load_config(config.model))
    copies = 2 if config.kl_penalty else 1  # the adapter `ref` is saved with each checkpoint
    table = Table("", "GB", title="derived from the shapes")
    for name, size in (
        ("base weights, bfloat16", 2 * base),
        ("adapter in memory, float32, and its gradients each", 4 * adapter),
        ("adapter as sent to an inference engine, bfloat16", 2 * adapter),
        ("optimizer state (AdamW), float32", 8 * adapter),
        ("one checkpoint on disk", 4 * adapter * copies + 8 * adapter),
        ("activations on disk, bfloat16", work.vectors_kept * width * 2),
    ):
        table.add_row(name, f"{size / 1e9:.3f}")
    return table


class Times(NamedTuple):
    """Seconds and rates measured on the card at hand."""

    step_seconds: float
    completions_per_second: float
    fine_tune_seconds: float


def hours(config: TrainConfig, work: Work, times: Times) -> dict[str, float]:
    """Return the hours of each phase, of times measured elsewhere."""
    warm_steps = config.warm_start_steps if config.warm_start != "none" else 0
    return {
        "GRPO steps": config.max_steps * times.step_seconds / 3600,
        "completions outside of GRPO": work.outside / times.completions_per_second / 3600,
        "fine-tuning of the warm start": warm_steps * times.fine_tune_seconds / 3600,
    }


def show_budget(config: TrainConfig, times: Times | None) -> None:
    """Print the tables; hours only where times are given."""
    work = work_of(config)
    console = terminal(stderr=False)
    console.print(work_table(work))
    console.print(bytes_table(config, work))
    if times is None:
        return
    table = Table("", "hours", title="derived from the times given")
    found = hours(config, work, times)
    for name, value in (found | {"all": sum(found.values())}).items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)
