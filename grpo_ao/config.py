"""Configuration of a run and of an evaluation: defaults, presets, a YAML file, flags.

The first tier is ``TrainConfig``: what a user of activation oracles sets. The second is ``trl``:
any field of TRL's ``GRPOConfig``, for the rest. Later sources win: defaults, ``--preset``,
``--config`` (YAML), flags.
"""

import copy
import dataclasses
import inspect
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro
import yaml
from trl.trainer.grpo_config import GRPOConfig

from grpo_ao.credit import Credit, ScaleRewards
from grpo_ao.errors import UserError
from grpo_ao.judges.factory import JudgeFlags
from grpo_ao.probe import Positions
from grpo_ao.probes.benchmarks import BENCHMARKS, Suite, check_benchmarks

Preset = Literal["mini", "qwen3-8b", "gemma-3-27b"]
# What the trainer itself decides; to set it a second time in `trl:` would contradict a flag.
_OWNED_BY_FLAGS = {
    "output_dir": "--output_dir",
    "num_generations": "--num_generations",
    "beta": "--kl_penalty",
    "learning_rate": "--lr",
    "temperature": "--temperature",
    "max_completion_length": "--max_new_tokens",
    "max_steps": "--max_steps",
    "seed": "--seed",
    "scale_rewards": "--scale_rewards",
    "save_steps": "--save_steps",
    "report_to": "--report_to",
    "gradient_checkpointing": "--gradient_checkpointing",
    "activation_checkpointing": "--gradient_checkpointing",
}
_UNTRUNCATED = "completions are sampled from the distribution that their log-probabilities are of"
# What would make the gradient another one than that of the reward.
_SETTLED = {
    "disable_dropout": "log-probabilities and completions are of the model without dropout",
    "use_vllm": "TRL's own vLLM does not inject the activations; --rollout vllm does",
    "top_p": _UNTRUNCATED,
    "top_k": _UNTRUNCATED,
    "min_p": _UNTRUNCATED,
    "repetition_penalty": _UNTRUNCATED,
    "generation_kwargs": _UNTRUNCATED,
}


@dataclass(frozen=True)
class TrainConfig(JudgeFlags):
    """What a run does. Every field is a flag; its default is what a plain ``train.py`` does."""

    model: str = "Qwen/Qwen3-8B"
    """Base model, a Hub id or a local folder: the subject and, with the adapter, the oracle."""
    oracle_lora_path: str = (
        "adamkarvonen/checkpoints_all_single_and_multi_pretrain_cls_latentqa_posttrain_Qwen3-8B"
    )
    """Adapter of the oracle to start from: a Hub id or a local folder."""
    questions: str = "ceselder/wildchat-oracle-questions"
    """Question set: a Hub id, a JSONL file, or `mini` for the mini world."""
    strict: bool = False
    """Make a broken row of the question set an error; else it is reported and left out."""
    output_dir: Path = Path("runs/qwen3-8b")
    """Folder of this run. An existing run is refused unless --resume is given."""
    resume: bool = False
    """Go on with the run in output_dir from its last checkpoint."""
    seed: int = 0
    """Seed of sampling, of the order of probes and of the warm start."""

    num_prompts: int | None = None
    """Use only the first N training texts of the question set (all of them without it)."""
    layer_percents: tuple[int, ...] = (25, 50, 75)
    """Depths at which the subject is read, in per cent of its layers; one is drawn per probe."""
    positions: str = "last:20"
    """Token positions that are read: last:K, window:K@OFFSET, token@OFFSET or all."""

    num_generations: int = 8
    """Completions per question (G)."""
    questions_per_step: int = 8
    """Questions per GRPO step."""
    max_steps: int = 1000
    """GRPO steps; 0 ends the run after the warm start."""
    lr: float = 1e-6
    """Peak learning rate of GRPO."""
    kl_penalty: float = 0.05
    """Weight of the KL divergence from the warm-started oracle (TRL's beta)."""
    calibration_lambda: float = 0.5
    """Weight of the squared calibration error in the reward; above 0.5 sandbagging pays."""
    credit: Credit = "split"
    """joint: every token gets the reward's advantage. split: the tag's tokens get the calibration
    term's, the answer's tokens that of informativeness."""
    scale_rewards: ScaleRewards = "none"
    """What advantages are divided by: the group's standard deviation, the batch's, or nothing."""
    temperature: float = 0.9
    """Sampling temperature of completions. Sampling is never truncated (top_p 1, no top_k)."""
    max_new_tokens: int = 64
    """Longest completion, in tokens."""
    rollout: Literal["transformers", "vllm"] = "transformers"
    """Who completes the prompts of a step: the oracle's own model, or vLLM."""
    vllm_gpu_memory: float = 0.3
    """Share of the GPU's memory that vLLM takes, its copy of the weights included."""
    vllm_servers: tuple[str, ...] = ()
    """Addresses of `grpo-ao vllm-serve` on other GPUs, one for each training process; without
    them vLLM runs beside the trainer."""

    lora_rank: int = 64
    """Rank that the adapter must have; another one is an error."""
    warm_start: Literal["measured", "random", "none"] = "measured"
    """Number that the tag is taught with before GRPO: the measured accuracy of the oracle's own
    samples on that question, or a random one. none: the adapter knows the tag already."""
    warm_start_probes: int = 2000
    """Questions of the warm start."""
    warm_start_samples: int = 8
    """Samples per question from which its accuracy is measured (k)."""
    warm_start_steps: int = 200
    """Optimizer steps of the warm start."""
    warm_start_batch: int = 8
    """Questions per optimizer step of the warm start, each with all of its samples."""
    warm_start_lr: float = 1e-5
    """Peak learning rate of the warm start."""

    judge_cache: Path | None = None
    """File that keeps the judge's grades, for any number of runs (default: grades.sqlite beside
    output_dir)."""
    max_unscored: float = 0.2
    """Largest share of completions that the judge may leave ungraded, in the mean of ten steps and
    in each measurement: above it the run stops, with a checkpoint."""

    initial_eval: bool = True
    """Measure the oracle on held-out probes before training (--no_initial_eval skips it)."""
    eval_probes: int = 2000
    """Held-out probes of the measurements before and after."""
    benchmarks: tuple[str, ...] = BENCHMARKS
    """Benchmarks asked before (unless --no_initial_eval), during and after training; none if no
    name follows."""
    data_dir: Path | None = None
    """Folder with the benchmarks' data (default: from the Hub)."""
    eval_contexts: int = 250
    """Contexts of each benchmark."""
    eval_steps: int = 250
    """Steps between measurements on the benchmarks."""
    report_to: Literal["none", "wandb", "tensorboard", "trackio"] = "none"
    """Where metrics go besides metrics.jsonl."""
    push_to_hub: str | None = None
    """Hub repository, USER/NAME, to which the adapter goes at the end, with its model card."""
    plot_every: int = 50
    """Steps between reliability diagrams and tables of sample rollouts."""
    save_steps: int = 50
    """Steps between checkpoints."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass to save memory."""
    load_in_4bit: bool = False
    """Hold the base model in 4 bits (NF4), an NVIDIA GPU and bitsandbytes given: a quarter of the
    memory. Subject and oracle are then the quantized model."""
    trl: dict[str, Any] = field(default_factory=dict)
    """Any further field of TRL's GRPOConfig (in the YAML file's section `trl:`)."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """Any further argument of vLLM's LLM (in the YAML file's section `vllm:`)."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_trl()
        Positions.parse(self.positions)
        if self.benchmarks:
            check_benchmarks(self.benchmarks)
        if self.eval_contexts < 2:
            raise UserError(f"--eval_contexts must be at least 2, got {self.eval_contexts}.")

    def _check_numbers(self) -> None:
        if not (self.calibration_lambda >= 0 and math.isfinite(self.calibration_lambda)):
            raise UserError(
                f"--calibration_lambda must be 0 or more, got {self.calibration_lambda}: "
                "a negative weight would reward miscalibration."
            )
        if self.num_generations < 2:
            raise UserError(
                f"--num_generations must be at least 2, got {self.num_generations}: "
                "an advantage compares the completions of one question."
            )
        if not self.kl_penalty >= 0:
            raise UserError(f"--kl_penalty must be 0 or more, got {self.kl_penalty}.")
        if not self.temperature > 0:
            raise UserError(f"--temperature must be above 0, got {self.temperature}.")
        if not self.layer_percents or not all(0 < p < 100 for p in self.layer_percents):
            raise UserError(
                f"--layer_percents must lie between 1 and 99, got {self.layer_percents}."
            )
        if self.max_steps < 0:
            raise UserError(f"--max_steps must be 0 or more, got {self.max_steps}.")
        positive = ("questions_per_step", "max_new_tokens", "eval_probes", "eval_steps")
        positive += ("warm_start_probes", "warm_start_samples", "warm_start_steps", "save_steps")
        positive += ("warm_start_batch", "plot_every", "lora_rank", "lr", "warm_start_lr")
        for name in positive:
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} must be above 0, got {getattr(self, name)}.")
        if not 0 <= self.max_unscored <= 1:
            raise UserError(f"--max_unscored must lie between 0 and 1, got {self.max_unscored}.")
        if not 0 < self.vllm_gpu_memory < 1:
            raise UserError(
                f"--vllm_gpu_memory must lie between 0 and 1, got {self.vllm_gpu_memory}."
            )
        if self.num_prompts is not None and self.num_prompts < 1:
            raise UserError(f"--num_prompts must be at least 1, got {self.num_prompts}.")

        if self.vllm_servers and self.vllm:
            raise UserError(
                "the section vllm: is for vLLM beside the trainer, and --vllm_servers run it "
                "elsewhere: leave one out."
            )

    def _check_trl(self) -> None:
        known = {f.name for f in dataclasses.fields(GRPOConfig) if f.init}
        for name in self.trl:
            if name in _OWNED_BY_FLAGS:
                raise UserError(f"'{name}' in section trl: is set by {_OWNED_BY_FLAGS[name]}.")
            if name in _SETTLED:
                raise UserError(f"'{name}' in section trl: cannot be set: {_SETTLED[name]}.")
            if name not in known:
                raise UserError(f"section trl: has '{name}', which TRL's GRPOConfig does not know.")


MINI_WEIGHTS = Path(__file__).resolve().parent / "mini" / "weights"

PRESETS: dict[str, dict[str, Any]] = {
    "qwen3-8b": {},
    "gemma-3-27b": {
        "model": "google/gemma-3-27b-it",
        "oracle_lora_path": "adamkarvonen/checkpoints_latentqa_cls_past_lens_gemma-3-27b-it",
        "output_dir": Path("runs/gemma-3-27b"),
    },
    "mini": {
        "model": str(MINI_WEIGHTS / "base"),
        "oracle_lora_path": str(MINI_WEIGHTS / "oracle"),
        "questions": "mini",
        "judge": "reference",
        "benchmarks": (),
        "output_dir": Path("runs/mini"),
        "max_steps": 200,
        "lr": 3e-4,
        "kl_penalty": 0.0,
        "temperature": 1.0,
        "max_new_tokens": 24,
        "lora_rank": 16,
        "warm_start_probes": 9600,
        "warm_start_samples": 3,
        "warm_start_steps": 300,
        "warm_start_batch": 32,
        "warm_start_lr": 1e-3,
        "gradient_checkpointing": False,
        "trl": {"lr_scheduler_type": "cosine"},
    },
}


class _Loader(yaml.SafeLoader):
    """Reads 1e-6 as the number that it is; YAML 1.1 reads it as a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_config_file(path: Path) -> dict[str, Any]:
    """Read a YAML file of ``TrainConfig`` fields.

    Raises UserError for a field that does not exist or holds a value of another type.
    """
    if not path.is_file():
        raise UserError(f"there is no configuration file at {path}.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a mapping of settings.")
    kinds = get_type_hints(TrainConfig)
    for name, value in values.items():
        if name not in kinds:
            raise UserError(f"{path} sets '{name}', which is no setting of a training run.")
        values[name] = _converted(value, kinds[name])
        if not _fits(values[name], kinds[name]):
            wanted = inspect.formatannotation(kinds[name])
            raise UserError(f"{path} sets '{name}' to {value!r}, which is not of type {wanted}.")
    return values


def _converted(value: Any, kind: Any) -> Any:
    """Return what YAML cannot write, or writes otherwise, as the field's type."""
    kinds = (kind, *get_args(kind))
    if Path in kinds and isinstance(value, str):
        return Path(value)
    if float in kinds and type(value) is int:
        return float(value)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(value)
    if get_origin(kind) is dict and value is None:  # a section without entries
        return {}
    return value


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in parts
    if origin is UnionType:
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and all(type(entry) is parts[0] for entry in value)
    if origin is dict or kind is Path:
        return isinstance(value, origin or Path)
    return type(value) is kind


def make_defaults(preset: Preset | None, config: Path | None) -> TrainConfig:
    """Combine defaults, preset and file, in that order; ``trl`` sections are merged."""
    values = copy.deepcopy(PRESETS[preset]) if preset else {}
    if config is not None:
        from_file = load_config_file(config)
        merged = values.get("trl", {}) | from_file.get("trl", {})
        values |= from_file | {"trl": merged}
    return TrainConfig(**values)


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
            raise UserError("--positions names none.")
        if not self.layer_percents or not all(0 < p < 100 for p in self.layer_percents):
            raise UserError(
                f"--layer_percents must lie between 1 and 99, got {self.layer_percents}."
            )
        if self.num_contexts < 2:
            raise UserError(
                f"--num_contexts must be at least 2, got {self.num_contexts}: half of the answers "
                "are Yes."
            )
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        if self.suite == "mini" and self.data_dir is not None:
            raise UserError("--data_dir has no part in the mini world's suite: leave it out.")

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
        raise UserError(f"--preset {preset} is unknown: choose from {', '.join(EVAL_PRESETS)}.")
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
