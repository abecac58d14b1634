"""A training run from beginning to end: probes, measurement, warm start, GRPO, measurement."""

import dataclasses
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

from peft import set_peft_model_state_dict
from peft.utils import load_peft_weights
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, TrainerCallback, set_seed
from trl import GRPOConfig

from grpo_ao.evaluation.heldout import arrays, measure, summarise
from grpo_ao.evaluation.plots import Panel, reliability_diagram
from grpo_ao.judges.reference import ReferenceJudge, check_references
from grpo_ao.oracle.activations import select_positions, subject_token_ids
from grpo_ao.oracle.layers import layer_index, num_decoder_layers
from grpo_ao.oracle.loading import load_tokenizer
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.positions import Positions
from grpo_ao.oracle.sources import resolve_files
from grpo_ao.oracle.spec import save_spec
from grpo_ao.oracle.store import ActivationStore, model_fingerprint
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.probes.mini import mini_probes
from grpo_ao.probes.probe import Probe, split_of
from grpo_ao.probes.rows import load_rows, probes_of
from grpo_ao.reward import CalibratedReward, ScoredCompletion
from grpo_ao.training.config import TrainConfig
from grpo_ao.training.monitor import Monitor
from grpo_ao.training.progress import PhaseProgress
from grpo_ao.training.reporting import make_reporter
from grpo_ao.training.run_folder import (
    RunFolder,
    append_jsonl,
    atomic_write_json,
    text_digest,
)
from grpo_ao.training.trainer import OracleGRPOTrainer
from grpo_ao.training.warm_start import fine_tune, make_targets, sample_answers

HELDOUT_SHARE = 0.1
LEAST_PARSE_RATE = 0.95
_COMPLETE = "complete.json"
_CHECKED = 400
_MODES = {"sampled": None, "greedy": 0.0}


def run(config: TrainConfig) -> dict:
    """Train an oracle as ``config`` says; return what ``summary.json`` holds.

    Everything that can be refused without a model is refused before one is loaded.
    """
    started = time.perf_counter()
    console = Console(stderr=True)
    folder = RunFolder(config.output_dir, config.resume)
    base_folder = resolve_files(config.model, ["config.json"])
    train, heldout = load_probes(config, console, num_layers_of(base_folder))
    check_references([*train, *heldout])
    record = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    data = {"train": text_digest([p.id for p in train])}
    folder.write_record(record, data | {"heldout": text_digest([p.id for p in heldout])})
    run_state = Run(config, folder.path, console, train, heldout)
    run_state.train()
    seconds = time.perf_counter() - started
    return run_state.finish(seconds)


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
    loaded = load_rows(config.questions)
    for problem in loaded.problems:
        console.print(problem, highlight=False)
    probes = probes_of(loaded.rows, layers, positions)
    probes = _long_enough(config, probes, console)
    train = [p for p in probes if split_of(p.text, HELDOUT_SHARE) == "train"]
    if config.num_prompts is not None:
        texts = list(dict.fromkeys(p.text for p in train))[: config.num_prompts]
        train = [p for p in train if p.text in set(texts)]
    heldout = [p for p in probes if split_of(p.text, HELDOUT_SHARE) == "heldout"]
    if not train or not heldout:
        raise ValueError(
            f"{config.questions} leaves {len(train)} training and {len(heldout)} held-out probes: "
            "both are needed, so give a larger question set."
        )
    return train, heldout[: config.eval_probes]


def _long_enough(config: TrainConfig, probes: list[Probe], console: Console) -> list[Probe]:
    """Leave out the probes whose text has fewer tokens than the positions that are read."""
    tokenizer = load_tokenizer(config.model, None)
    lengths = {text: len(subject_token_ids(tokenizer, text)) for text in {p.text for p in probes}}
    kept, first_problem = [], ""
    for probe in probes:
        try:
            select_positions(range(lengths[probe.text]), probe.positions, probe.text)
            kept.append(probe)
        except ValueError as error:
            first_problem = first_problem or str(error)
    if first_problem:
        left_out = len(probes) - len(kept)
        console.print(f"{left_out} probes are left out. The first: {first_problem}")
    if not kept:
        raise ValueError(f"no probe can be read. The first: {first_problem}")
    return kept


def trainer_config(config: TrainConfig, on_cuda: bool) -> GRPOConfig:
    """Translate our configuration into TRL's; the section ``trl`` adds to it.

    Sampling is untruncated: log-probabilities of a truncated distribution would be of another one.
    """
    settings = {
        "output_dir": str(config.output_dir / "checkpoints"),
        "per_device_train_batch_size": config.questions_per_step * config.num_generations,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "num_generations": config.num_generations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "beta": config.kl_penalty,
        "learning_rate": config.lr,
        "scale_rewards": config.scale_rewards,
        "max_steps": config.max_steps,
        "save_steps": config.save_steps,
        "seed": config.seed,
        "gradient_checkpointing": config.gradient_checkpointing,
        "bf16": on_cuda,
        "use_cpu": not on_cuda,
        "disable_dropout": True,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return GRPOConfig(**(settings | config.trl))


class CheckpointCallback(TrainerCallback):
    """Completes TRL's checkpoints with ``ao_config.json`` and, last, a mark that they are whole."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def on_save(self, args, state, control, **kwargs):
        """Mark the checkpoint that was just written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        save_spec(self._oracle.spec, folder)
        atomic_write_json(folder / _COMPLETE, {"step": state.global_step})


class ProgressCallback(TrainerCallback):
    """Moves the progress bar on after each step."""

    def __init__(self, progress: PhaseProgress) -> None:
        self._progress = progress

    def on_step_end(self, args, state, control, **kwargs):
        """Advance by one step."""
        self._progress.advance(1)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written whole."""
    marks = folder.glob(f"checkpoint-*/{_COMPLETE}")
    whole = sorted((json.loads(mark.read_text())["step"], mark.parent) for mark in marks)
    return whole[-1][1] if whole else None


class Run:
    """One run: the oracle, its tables of probes, and what has been measured so far."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        console: Console,
        train: list[Probe],
        heldout: list[Probe],
    ) -> None:
        self.config = config
        self.folder = folder
        self.console = console
        self.judge = ReferenceJudge()
        self.oracle = Oracle.from_pretrained(config.model, config.oracle_lora_path)
        check_rank(self.oracle, config)
        make_trainable(self.oracle)
        self.progress = PhaseProgress(console)
        with self.progress.phase("reading activations", 2):
            self.train_table = self._table("train", train)
            self.heldout_table = self._table("heldout", heldout)
        self.measured: dict[str, dict[str, list[ScoredCompletion]]] = {}

    def _table(self, name: str, probes: Sequence[Probe]) -> ProbeTable:
        store = ActivationStore.build(
            self.config.output_dir.parent / "activations" / name,
            self.oracle.model,
            self.oracle.tokenizer,
            probes,
            model_fingerprint(self.config.model),
            batch_size=64,
        )
        self.progress.advance(1)
        return ProbeTable.build(self.oracle, probes, store)

    def train(self) -> None:
        """Measure, warm-start, run GRPO, measure."""
        if self.config.initial_eval:
            self._measure("before")
        if self.config.warm_start != "none":
            self._warm_start()
        self._grpo()
        self._measure("after")

    def _measure(self, when: str) -> None:
        self.measured[when] = {}
        for mode, fixed in _MODES.items():
            temperature = self.config.temperature if fixed is None else fixed
            set_seed(self.config.seed)
            with self.progress.phase(f"measuring {when}, {mode}", len(self.heldout_table)) as bar:
                scored = measure(
                    self.oracle,
                    self.heldout_table,
                    self.judge,
                    temperature,
                    self.config.max_new_tokens,
                    bar.to,
                )
            self.measured[when][mode] = scored
            path = self.folder / f"heldout_{when}_{mode}.jsonl"
            path.unlink(missing_ok=True)
            append_jsonl(path, [_row(s) for s in scored])

    def _check_oracle(self, name: str) -> dict[str, float]:
        """Measure parse rate and accuracy on a part of the training probes."""
        rows = range(min(_CHECKED, len(self.train_table)))
        part = self.train_table.part(rows)
        set_seed(self.config.seed)
        with self.progress.phase(name, len(rows)) as bar:
            scored = measure(
                self.oracle,
                part,
                self.judge,
                self.config.temperature,
                self.config.max_new_tokens,
                bar.to,
            )
        return summarise(scored)

    def _warm_start(self) -> None:
        config, folder = self.config, self.folder / "warm_start"
        if (folder / _COMPLETE).exists():
            load_adapter(self.oracle, folder)
            return
        folder.mkdir(exist_ok=True)
        before = self._check_oracle("parse rate before the warm start")
        rng = random.Random(f"warm start {config.seed}")
        size = min(config.warm_start_probes, len(self.train_table))
        rows = sorted(rng.sample(range(len(self.train_table)), size))
        set_seed(config.seed)
        with self.progress.phase("sampling answers for the warm start", len(rows)) as bar:
            samples = sample_answers(
                self.oracle,
                self.train_table,
                self.judge,
                rows,
                config.warm_start_samples if config.warm_start == "measured" else 1,
                config.temperature,
                config.max_new_tokens,
                folder / "samples.jsonl",
                bar.advance,
            )
        targets = make_targets(
            self.oracle.tokenizer, self.train_table, rows, samples, config.warm_start, rng
        )
        with self.progress.phase("warm start", config.warm_start_steps) as bar:
            losses = fine_tune(
                self.oracle,
                self.train_table,
                targets,
                config.warm_start_steps,
                config.warm_start_batch,
                config.warm_start_lr,
                config.seed,
                bar.advance,
            )
        after = self._check_oracle("parse rate after the warm start")
        self.oracle.save_adapter(folder)
        summary = {"before": before, "after": after, "losses": losses}
        atomic_write_json(folder / "summary.json", summary)
        atomic_write_json(folder / _COMPLETE, {"steps": config.warm_start_steps})

    def _check_parse_rate(self) -> None:
        rate = self._check_oracle("parse rate before GRPO")["parse_rate"]
        if rate < LEAST_PARSE_RATE:
            raise ValueError(
                f"only {rate:.0%} of the oracle's outputs are well-formed, below "
                f"{LEAST_PARSE_RATE:.0%}: GRPO does not start. Lengthen the warm start "
                "(--warm_start_steps, --warm_start_probes) or raise --warm_start_lr."
            )

    def _grpo(self) -> None:
        config = self.config
        checkpoint = last_checkpoint(config.output_dir / "checkpoints")
        if checkpoint is None:
            self._check_parse_rate()
        done = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        reporter = make_reporter(config.report_to, self.folder, dataclasses.asdict(config))
        monitor = Monitor(self.folder, reporter, config.plot_every, resume_at=done)
        probes = {probe.id: probe for probe in self.train_table.probes}
        device = next(self.oracle.model.parameters()).device
        with self.progress.phase("GRPO", config.max_steps) as bar:
            bar.advance(done)
            trainer = OracleGRPOTrainer(
                self.oracle,
                self.train_table,
                CalibratedReward(self.judge, probes, config.calibration_lambda),
                trainer_config(config, device.type == "cuda"),
                config.credit,
                monitor,
                [CheckpointCallback(self.oracle), ProgressCallback(self.progress)],
            )
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        self.oracle.hook.clear()
        self.oracle.save_adapter(self.folder / "adapter")

    def finish(self, seconds: float) -> dict:
        """Write ``summary.json`` and the figure, print the table, return the summary."""
        summary = {
            when: {mode: summarise(scored) for mode, scored in modes.items()}
            for when, modes in self.measured.items()
        }
        result = summary | {"seconds": round(seconds, 1)}
        atomic_write_json(self.folder / "summary.json", result)
        picture = self.folder / "reliability.png"
        panels = [
            Panel(when, *_stated(self.measured[when]["sampled"]))
            for when in ("before", "after")
            if when in self.measured
        ]
        reliability_diagram(picture, panels)
        self.console.print(summary_table(summary))
        self.console.print(f"figure: {picture}   rows, metrics and adapter: {self.folder}")
        return result


def _stated(scored: Sequence[ScoredCompletion]):
    confidence, score, parsed = arrays(scored)
    return confidence[parsed], score[parsed]


def _row(scored: ScoredCompletion) -> dict:
    probe = scored.probe
    return {
        "probe_id": probe.id,
        "family": probe.family,
        "kind": probe.kind,
        "layer": probe.layer,
        "positions": str(probe.positions),
        "question": probe.question,
        "reference": probe.reference,
        "completion": scored.completion,
        "confidence": scored.output.confidence,
        "answer": scored.output.answer,
        "parsed": scored.output.parsed,
        "score": scored.terms.informativeness,
    }


def summary_table(summary: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Lay out the summary: one line a metric, one column a measurement."""
    table = Table(title="held-out probes")
    table.add_column("metric", no_wrap=True)
    columns = [(when, mode) for mode in _MODES for when in summary]
    for when, mode in columns:
        table.add_column(f"{when}, {mode}", justify="right")
    for metric in next(iter(summary.values()))["sampled"]:
        values = [summary[when][mode][metric] for when, mode in columns]
        shown = [str(v) if isinstance(v, int) else f"{v:.3f}" for v in values]
        table.add_row(metric, *shown)
    return table


def check_rank(oracle: Oracle, config: TrainConfig) -> None:
    """Refuse an adapter whose LoRA rank is not the configured one."""
    rank = oracle.model.peft_config["default"].r
    if rank != config.lora_rank:
        raise ValueError(
            f"the adapter {config.oracle_lora_path} has LoRA rank {rank}, not {config.lora_rank}: "
            f"give --lora_rank {rank} or another adapter."
        )


def make_trainable(oracle: Oracle) -> None:
    """Let gradients reach the weights of the adapter ``default``, and nothing else."""
    for name, parameter in oracle.model.named_parameters():
        parameter.requires_grad_(".default." in name or name.endswith(".default"))


def load_adapter(oracle: Oracle, folder: Path) -> None:
    """Put the weights of a saved adapter into the adapter ``default``."""
    device = next(oracle.model.parameters()).device
    weights = load_peft_weights(str(folder), device=str(device))
    set_peft_model_state_dict(oracle.model, weights, adapter_name="default")
