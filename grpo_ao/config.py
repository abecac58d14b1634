"""Configuration of a run and of an evaluation: defaults, presets, a YAML file, flags.

The first tier is ``TrainConfig``: what a user of activation oracles sets. The second is ``trl``:
any field of TRL's ``GRPOConfig``, for the rest. Later sources win: defaults, ``--preset``,
``--config`` (YAML), flags. What can be refused of the settings alone is refused here, and light
to import: neither torch nor TRL is needed to read a command line.
"""

import copy
import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import yaml

from grpo_ao.errors import UserError
from grpo_ao.files import (
    MINI_WEIGHTS,
    SMOLLM2,
    SMOLLM2_ORACLE,
    holds_run,
    read_run_json,
    typed,
)
from grpo_ao.judges.flags import CHANGEABLE, PRICES, JudgeFlags
from grpo_ao.numbers import check_numbers
from grpo_ao.probe import Positions, format_layers, parse_layers
from grpo_ao.probes.names import BENCHMARKS, Suite, check_benchmarks

Destination = Literal["none", "wandb", "tensorboard", "trackio"]
# An advantage compares completions of one question; half of a benchmark's answers are Yes.
_AT_LEAST_2 = ("num_generations", "eval_contexts", "num_contexts")
_MAY_BE_ZERO = ("seed", "max_steps", "calibration_lambda", "kl_penalty", *PRICES)
_SHARES = ("max_unscored", "vllm_gpu_memory", "wrong_activations")


def _check_numbers(config: "TrainConfig | EvalConfig") -> None:
    check_numbers(config, shares=_SHARES, may_be_zero=_MAY_BE_ZERO, at_least_2=_AT_LEAST_2)


def _check_reading(config: "TrainConfig | EvalConfig", positions: tuple[str, ...]) -> None:
    percents = config.layer_percents
    if not all(0 < p < 100 for p in percents):
        raise UserError(f"--layer_percents must lie between 1 and 99, got {percents}.")
    if config.layers and percents:
        raise UserError("--layers and --layer_percents say the same: give one.")
    layers = [] if config.layers == ("all",) else [parse_layers(spec) for spec in config.layers]
    _check_named_once("--layers", [format_layers(read) for read in layers])
    _check_named_once("--layer_percents", percents)
    _check_named_once("--positions", [str(Positions.parse(spec)) for spec in positions])


def _check_named_once(flag: str, values: Sequence[object]) -> None:
    """Refuse what is named twice: it would be asked once more and counted twice."""
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{flag} names {value} twice: give it once.")


@dataclass(frozen=True)
class RolloutFlags:
    """The flags that say who completes prompts."""

    rollout: Literal["transformers", "vllm"] = "transformers"
    """Who completes prompts: the oracle's own model, or vLLM."""
    vllm_gpu_memory: float = field(default=0.3, metadata=CHANGEABLE)
    """Share of the GPU's memory that vLLM takes, its copy of the weights included."""
    vllm_servers: tuple[str, ...] = field(default=(), metadata=CHANGEABLE)
    """Addresses of `grpo-ao vllm-serve` on other GPUs, one for each process of the command; without
    them vLLM runs beside the oracle's model."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """Any further argument of vLLM's LLM (in the YAML file's section `vllm:`)."""


@dataclass(frozen=True)
class TrainConfig(RolloutFlags, JudgeFlags):
    """What a run does. Every field is a flag; its default is what a plain ``train.py`` does."""

    model: str = "Qwen/Qwen3-8B"
    """Base model (a Hub id, a folder, a .gguf file): subject and, with the adapter, oracle."""
    oracle_lora_path: str = (
        "adamkarvonen/checkpoints_all_single_and_multi_pretrain_cls_latentqa_posttrain_Qwen3-8B"
    )
    """Adapter of the oracle to start from: a Hub id or a local folder."""
    questions: str = "ceselder/wildchat-oracle-questions"
    """Question set: a Hub id, a file (JSONL, JSON, CSV, parquet), or `mini` for the mini world."""
    heldout: str | None = None
    """Question set that is measured before and after (default: a fifth of the texts of
    `questions`); its texts are left out of all stages of training."""
    strict: bool = False
    """Make a row that is broken, or too long for the model, an error; else it is left out."""
    output_dir: Path = field(default=Path("runs/qwen3-8b"), metadata=CHANGEABLE)
    """Folder of this run. An existing run is refused unless it is resumed."""
    resume: bool = field(default=False, metadata=CHANGEABLE)
    """Go on with a run from its last checkpoint: `--resume FOLDER`, with the settings that it has,
    or `--resume` beside all the flags of its start."""
    seed: int = 0
    """Seed of sampling, of the order of probes and of the warm start."""

    num_prompts: int | None = None
    """Use only the first N training texts of the question set (all of them without it)."""
    subject_lora: str | None = None
    """Adapter with which the base model is read: a fine-tuned subject (a Hub id or a folder). The
    oracle answers on the base model without it."""
    layers: tuple[str, ...] = ()
    """Layers that are read: `9 18 27` draws one per probe, `21,22,23` reads three together.
    Without it, those that the adapter was trained on."""
    layer_percents: tuple[int, ...] = ()
    """Layers that are read instead, as depths in per cent of all; one is drawn per probe."""
    positions: str = "last:20"
    """Token positions that are read: last:K, window:K@OFFSET, token@OFFSET or all."""
    strict_positions: bool = False
    """Make a text with fewer tokens than --positions reads an error; else all it has are read."""

    num_generations: int = 8
    """Completions per question (G)."""
    questions_per_step: int = 8
    """Questions per GRPO step."""
    max_steps: int = 1000
    """GRPO steps; 0 ends the run after the warm start."""
    lr: float = 1e-6
    """Peak learning rate of GRPO."""
    kl_penalty: float = 0.05
    """Weight of the answers' KL divergence from the warm-started oracle (TRL's beta); the tag is
    held to nothing."""
    calibration_lambda: float = 0.5
    """Weight of the squared calibration error in the reward; above 0.5 sandbagging pays."""
    reward: str | None = None
    """A reward of your own instead: MODULE:FUNCTION, of confidence and informativeness."""
    credit: Literal["joint", "split"] = "split"
    """joint: every token gets the reward's advantage. split: the tag's tokens get the calibration
    term's, the answer's tokens that of informativeness."""
    tag_outcome: Literal["own", "group"] = "own"
    """What split credit compares a confidence with: the completion's own informativeness, or the
    mean of its group's others, which has less variance."""
    scale_rewards: Literal["group", "batch", "none"] = "none"
    """What advantages are divided by: the group's standard deviation, the batch's, or nothing."""
    temperature: float = 0.9
    """Sampling temperature of completions. Sampling is never truncated (top_p 1, no top_k)."""
    max_new_tokens: int = 64
    """Longest completion, in tokens."""

    warm_start: Literal["measured", "random", "none"] = "measured"
    """Number that the tag is taught with before GRPO: the oracle's probability of its own answer,
    recalibrated by the grades of answers about other texts, or a random one. none: the adapter
    knows the tag already."""
    warm_start_probes: int = 4000
    """Questions of the warm start. Each is answered once, greedily, and the answer is graded and
    taught with its tag."""
    warm_start_steps: int = 125
    """Optimizer steps of the warm start."""
    warm_start_batch: int = 32
    """Questions per optimizer step of the warm start."""
    warm_start_lr: float = 1e-5
    """Peak learning rate of the warm start."""

    wrong_activations: float = 0.1
    """Share of training questions that are asked on another text's activations or on noise, where
    the number has to fall to what a guess is worth."""

    judge_cache: Path | None = field(default=None, metadata=CHANGEABLE)
    """File that keeps the judge's grades, for any number of runs (default: grades.sqlite beside
    output_dir)."""
    max_unscored: float = field(default=0.2, metadata=CHANGEABLE)
    """Largest share of answers that the judge may leave ungraded: above it a measurement stops, and
    a round of rollouts trains nothing and is made anew; ten such rounds in a row end the run."""

    initial_eval: bool = True
    """Measure the oracle on held-out probes before training (--no_initial_eval skips it)."""
    validation_probes: int = 1000
    """Probes of validation texts, on which GRPO's checkpoints are compared with the warm start."""
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
    report_to: tuple[Destination, ...] = field(default=(), metadata=CHANGEABLE)
    """Where metrics go besides metrics.jsonl: one or several."""
    push_to_hub: str | None = field(default=None, metadata=CHANGEABLE)
    """Hub repository, USER/NAME, to which the adapter goes at the end, with its model card."""
    push_public: bool = field(default=False, metadata=CHANGEABLE)
    """Make that repository public where it is not there yet; else it is private."""
    log_every: int = field(default=10, metadata=CHANGEABLE)
    """Steps between lines on the terminal and in run.log."""
    plot_every: int = field(default=50, metadata=CHANGEABLE)
    """Steps between reliability diagrams and tables of sample rollouts."""
    save_steps: int = field(default=50, metadata=CHANGEABLE)
    """Steps between checkpoints."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass to save memory."""
    load_in_4bit: bool = False
    """Hold the base model in 4 bits (NF4), an NVIDIA GPU and bitsandbytes given: a quarter of the
    memory. Subject and oracle are then the quantized model."""
    trl: dict[str, Any] = field(default_factory=dict)
    """Any further field of TRL's GRPOConfig (in the YAML file's section `trl:`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_numbers(self)
        _check_reading(self, (self.positions,))
        _check_named_once("--benchmarks", self.benchmarks)
        if self.benchmarks:
            check_benchmarks(self.benchmarks)
        if self.tag_outcome == "group" and self.credit == "joint":
            raise UserError(
                "--tag_outcome group credits the tag alone, --credit joint all tokens alike: leave "
                "one out."
            )


def changeable_names(config: type) -> frozenset[str]:
    """Return the settings that a resumed run may change, since no result depends on them."""
    fields = dataclasses.fields(config)
    return frozenset(f.name for f in fields if f.metadata.get("changeable"))


PRESETS: dict[str, dict[str, Any]] = {
    "qwen3-8b": {},
    "gemma-3-27b": {
        "model": "google/gemma-3-27b-it",
        "oracle_lora_path": "adamkarvonen/checkpoints_latentqa_cls_past_lens_gemma-3-27b-it",
        "output_dir": Path("runs/gemma-3-27b"),
    },
    # Calibrates an oracle of `make-oracle --preset smollm2-135m`, with its `--oracle_lora_path` and
    # `--questions`. Alone it goes on with the oracle that ships, on questions of one's own.
    "smollm2-135m": {
        "model": SMOLLM2,
        "oracle_lora_path": str(SMOLLM2_ORACLE),
        "judge": "reference",
        "benchmarks": (),
        "output_dir": Path("runs/smollm2-135m"),
        "positions": "window:50@-1",
        "temperature": 1.0,
        "max_new_tokens": 16,
        "warm_start_probes": 32_000,
        "warm_start_steps": 1200,
        "warm_start_batch": 80,
        "warm_start_lr": 2e-4,
        "questions_per_step": 32,
        "max_steps": 100,
        "save_steps": 20,
        "lr": 5e-6,
        "kl_penalty": 0.2,
        "gradient_checkpointing": False,
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
        "warm_start_probes": 12800,
        "warm_start_steps": 400,
        "warm_start_batch": 32,
        "warm_start_lr": 1e-3,
        "gradient_checkpointing": False,
        "trl": {"lr_scheduler_type": "cosine"},
    },
}


class _Loader(yaml.SafeLoader):
    """Reads 1e-6 as the number that it is, and takes no key twice and no alias."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse ``*name``: a few of them, one in another, stand for more than memory holds."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias (*name): write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Refuse a key that is given twice: YAML would keep the last, without a word."""
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if isinstance(key, str) and keys.count(key) > 1:
                raise yaml.YAMLError(f"the key '{key}' is given twice")
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-6, without a point, as a text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_config_file(path: Path, kind: type) -> dict[str, Any]:
    """Read a YAML file of the fields of ``TrainConfig`` or ``EvalConfig``.

    Raises UserError for a field that does not exist or holds a value of another type.
    """
    return _typed(_read_yaml(path), path, kind)


def recorded_config(folder: Path) -> TrainConfig:
    """Read the settings of a run from its ``run.json``, to go on with it.

    Raises UserError where there is no run, and for a setting of another version.
    """
    path = folder / "run.json"
    if not holds_run(folder):
        raise UserError(f"there is no run to resume in {folder}: it holds no run.json.")
    values = _typed(read_run_json(folder)["config"], path, TrainConfig)
    return TrainConfig(**values | {"resume": True, "output_dir": folder})


def _typed(values: dict[Any, Any], path: Path, kind: type) -> dict[str, Any]:
    types = get_type_hints(kind)
    for name, value in values.items():
        if name not in types:
            raise UserError(f"{path} sets '{name}', which is no setting of this command.")
        if types[name] == dict[str, Any] and value is None:  # a section without entries
            value = {}
        try:
            values[name] = typed(value, types[name])
        except ValueError as error:
            wanted = inspect.formatannotation(types[name])
            raise UserError(
                f"{path} sets '{name}' to {value!r}, which is not of type {wanted}."
            ) from error
    return values


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except OSError as error:
        raise UserError(f"there is no configuration file at {path}: {error.strerror}.") from error
    except (ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {said}.") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply to be a configuration.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a mapping of settings.")
    return values


@dataclass(frozen=True)
class EvalConfig(RolloutFlags):
    """What an evaluation does. Every field is a flag."""

    model: str = TrainConfig.model
    """Base model (a Hub id, a folder, a .gguf file): subject and, with the adapter, oracle."""
    oracle_lora_path: str = TrainConfig.oracle_lora_path
    """Adapter of the oracle: a Hub id or a local folder."""
    compare: tuple[str, ...] = ()
    """Further adapters, asked the same questions: the oracle's differences from each are paired."""
    suite: Suite = "paper"
    """The benchmarks of the Activation Oracles paper, or the same families of the mini world."""
    benchmarks: tuple[str, ...] = BENCHMARKS
    """Which to run: of the nine, `taboo` and `personaqa` of a fine-tuned subject, JSONL files."""
    data_dir: Path | None = None
    """Folder with the benchmarks' data and question_paraphrases.json (default: from the Hub)."""
    output_dir: Path = Path("runs/eval")
    """Folder of rows, metrics and figures. An evaluation that was killed goes on where it was."""
    num_contexts: int = 250
    """Contexts of each benchmark; each gets one question."""
    positions: tuple[str, ...] = ("token@-3", "window:50@-1")
    """Token positions that are read, each in turn: token@OFFSET, window:K@OFFSET, last:K or all."""
    subject_lora: tuple[str, ...] = ()
    """Adapters with which the base model is read, each in turn: fine-tuned subjects (Hub ids or
    folders). The oracle answers on the base model without them."""
    layers: tuple[str, ...] = ()
    """Layers that are read: `9 18 27` each in turn, `21,22,23` three together, or `all`, one after
    the other. Without it, those that the adapter was trained on."""
    layer_percents: tuple[int, ...] = ()
    """Layers that are read instead, as depths in per cent of all."""
    one_layer: bool = False
    """Ask each question at one of the layers that the adapter was trained on, drawn by a hash,
    instead of at every one. Layers that are named are read each in turn all the same."""
    controls: bool = True
    """Ask some probes again on other activations (another text's, noise, none), and measure what
    else an answer's rightness can be predicted from."""
    control_probes: int = 300
    """How many probes are asked again."""
    max_new_tokens: int = 64
    """Longest completion, in tokens."""
    batch_size: int = 256
    """Sequences that are completed together: only speed and memory depend on it."""
    report_to: tuple[Destination, ...] = ()
    """Where metrics, figures and tables go besides the output folder."""

    def __post_init__(self) -> None:
        _check_numbers(self)
        check_benchmarks(self.benchmarks)
        _check_named_once("--benchmarks", self.benchmarks)
        if not self.positions:
            raise UserError("--positions names none.")
        _check_reading(self, self.positions)
        if self.suite == "mini" and self.data_dir is not None:
            raise UserError("--data_dir has no part in the mini world's suite: leave it out.")

    def settings(self) -> dict[str, Any]:
        """Return what answers depend on: all but where they go and how fast they are made."""
        values = dataclasses.asdict(self)
        for name in ("output_dir", "batch_size", "report_to", *changeable_names(RolloutFlags)):
            del values[name]
        return values | {"data_dir": str(self.data_dir) if self.data_dir else None}


EVAL_PRESETS: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model": SMOLLM2,
        "oracle_lora_path": str(SMOLLM2_ORACLE),
        "output_dir": Path("runs/smollm2-135m-eval"),
        "positions": ("window:50@-1",),
        "one_layer": True,
        "max_new_tokens": 16,
    },
    "mini": {
        "model": str(MINI_WEIGHTS / "base"),
        "oracle_lora_path": str(MINI_WEIGHTS / "oracle"),
        "suite": "mini",
        "output_dir": Path("runs/mini-eval"),
        "positions": ("last:20",),
        "one_layer": True,
        "max_new_tokens": 24,
        "batch_size": 320,
        # Four minutes on two cores, all in all.
        "control_probes": 200,
    },
}


Config = TypeVar("Config", TrainConfig, EvalConfig)


def make_defaults(preset: str | None, path: Path | None = None) -> TrainConfig:
    """Return the settings of a training run: see ``combined``."""
    return combined(TrainConfig, PRESETS, preset, path)


def combined(
    kind: type[Config],
    presets: Mapping[str, dict[str, Any]],
    preset: str | None,
    path: Path | None,
) -> Config:
    """Combine defaults, preset and file, in that order; ``trl`` sections are merged."""
    if preset is not None and preset not in presets:
        raise UserError(f"--preset {preset} is unknown: choose from {', '.join(presets)}.")
    values = copy.deepcopy(presets[preset]) if preset is not None else {}
    from_file = load_config_file(path, kind) if path is not None else {}
    if "trl" in from_file:
        from_file["trl"] = values.get("trl", {}) | from_file["trl"]
    return kind(**{**values, **from_file})


@dataclass(frozen=True)
class AskConfig:
    """What is asked of whom. Every field is a flag."""

    text: str | None = None
    """Text that the subject reads."""
    question: str | None = None
    """Question about it; the oracle sees the activations only."""
    input: Path | None = None
    """File of rows with `text` and `question` instead of one of each: JSONL, JSON, CSV, parquet."""
    output: Path | None = None
    """JSONL file that the rows and their answers are appended to (default: they are printed)."""
    run: Path | None = None
    """Folder of a run: its model and its adapter answer, at the layers and positions it read."""
    preset: Literal["mini", "smollm2-135m"] = "mini"
    """Oracle of the package: the mini one, or the calibrated one of SmolLM2-135M-Instruct, whose
    base comes from the Hub, or from --model."""
    model: str | None = None
    """Base model, a Hub id, a folder or a .gguf file (default: the preset's)."""
    oracle_lora_path: str | None = None
    """Adapter (default: the preset's)."""
    subject_lora: str | None = None
    """Adapter with which the text is read: a fine-tuned subject (default: the run's, or none)."""
    layers: str | None = None
    """Layer that is read, or several together, as 21,22,23 (default: as the adapter was trained;
    the middle one where it reads one of several)."""
    positions: str | None = None
    """Token positions that are read: last:K, window:K@OFFSET, token@OFFSET or all (default: the
    run's or the preset's, or last:20)."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    samples: int = 0
    """Answer so many times more, at temperature 1, and tell how many agree."""
    show_tokens: bool = False
    """Print the tokens at whose positions the subject is read."""

    def __post_init__(self) -> None:
        if self.positions is not None:
            Positions.parse(self.positions)
        if self.run is not None and (self.model or self.oracle_lora_path):
            raise UserError("--run names its own model and adapter: leave out the others.")
        whole = (self.model is None) == (self.oracle_lora_path is None)
        if not whole and (self.preset == "mini" or self.model is None):
            raise UserError(
                "give both --model and --oracle_lora_path, or neither for the oracle of a preset."
            )
        check_numbers(self, may_be_zero=("temperature", "samples"))
        if self.layers is not None:
            parse_layers(self.layers)
        given = [value is not None for value in (self.text, self.question, self.input)]
        if given not in ([True, True, False], [False, False, True]):
            raise UserError("give --text and --question, or --input with rows of both.")
        if self.output is not None and self.input is None:
            raise UserError("--output takes the answers to the rows of --input: give both.")
