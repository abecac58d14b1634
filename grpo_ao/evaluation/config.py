"""Configuration of an evaluation."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from grpo_ao.evaluation.benchmarks import BENCHMARKS, Suite, check_benchmarks
from grpo_ao.oracle.positions import Positions
from grpo_ao.training.config import MINI_WEIGHTS, TrainConfig


@dataclass(frozen=True)
class EvalConfig:
    """What an evaluation does. Every field is a flag."""

    model: str = TrainConfig.model
    """Base model, a Hub id or a local folder: the subject and, with an adapter, the oracle."""
    oracle_lora_path: str = TrainConfig.oracle_lora_path
    """Adapter of the oracle: a Hub id or a local folder."""
    compare: tuple[str, ...] = ()
    """Further adapters, asked the same questions: the oracle's differences from each are paired."""
    suite: Suite = "paper"
    """The benchmarks of the Activation Oracles paper, or the same families of the mini world."""
    benchmarks: tuple[str, ...] = BENCHMARKS
    """Which of the nine to run."""
    data_dir: Path | None = None
    """Folder with the benchmarks' data and question_paraphrases.json (default: from the Hub)."""
    output_dir: Path = Path("runs/eval")
    """Folder of rows, metrics and figures. An evaluation that was killed goes on where it was."""
    num_contexts: int = 250
    """Contexts of each benchmark; each gets one question."""
    positions: tuple[str, ...] = ("token@-3", "window:50@-1")
    """Token positions that are read, each in turn: token@OFFSET, window:K@OFFSET, last:K or all."""
    layer_percents: tuple[int, ...] = (25, 50, 75)
    """Depths at which the subject is read, in per cent of its layers."""
    one_layer: bool = False
    """Ask each question at one of the layers, drawn by a hash, instead of at every one."""
    max_new_tokens: int = 64
    """Longest completion, in tokens."""
    batch_size: int = 256
    """Sequences that are completed together: only speed and memory depend on it."""
    report_to: Literal["none", "wandb", "tensorboard", "trackio"] = "none"
    """Where metrics, figures and tables go besides the output folder."""

    def __post_init__(self) -> None:
        check_benchmarks(self.benchmarks)
        for spec in self.positions:
            Positions.parse(spec)
        if not self.positions:
            raise ValueError("--positions names none.")
        if not self.layer_percents or not all(0 < p < 100 for p in self.layer_percents):
            raise ValueError(
                f"--layer_percents must lie between 1 and 99, got {self.layer_percents}."
            )
        if self.num_contexts < 2:
            raise ValueError(
                f"--num_contexts must be at least 2, got {self.num_contexts}: half of the answers "
                "are Yes."
            )
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        if self.suite == "mini" and self.data_dir is not None:
            raise ValueError("--data_dir has no part in the mini world's suite: leave it out.")

    def settings(self) -> dict[str, Any]:
        """Return what answers depend on: all but where they go and how fast they are made."""
        values = dataclasses.asdict(self)
        for name in ("output_dir", "batch_size", "report_to"):
            del values[name]
        return values | {"data_dir": str(self.data_dir) if self.data_dir else None}


EVAL_PRESETS: dict[str, dict[str, Any]] = {
    "mini": {
        "model": str(MINI_WEIGHTS / "base"),
        "oracle_lora_path": str(MINI_WEIGHTS / "oracle"),
        "suite": "mini",
        "output_dir": Path("runs/mini-eval"),
        "positions": ("last:20",),
        "one_layer": True,
        "max_new_tokens": 24,
        "batch_size": 320,
    },
}


def parse_eval_config(preset: str | None, arguments: list[str]) -> EvalConfig:
    """Read the flags; a preset makes their defaults."""
    if preset is not None and preset not in EVAL_PRESETS:
        raise ValueError(f"--preset {preset} is unknown: choose from {', '.join(EVAL_PRESETS)}.")
    description = (
        "Evaluate calibrated activation oracles on nine benchmarks. Before all other flags: "
        f"--preset {{{','.join(EVAL_PRESETS)}}} sets the defaults shown here."
    )
    return tyro.cli(
        EvalConfig,
        default=EvalConfig(**EVAL_PRESETS.get(preset or "", {})),
        args=arguments,
        prog="evaluate.py",
        description=description,
    )
