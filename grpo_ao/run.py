"""A training run from beginning to end: probes, measurement, warm start, GRPO, measurement."""

import dataclasses
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from transformers import set_seed

from grpo_ao.checks import check_start, trainer_config, warnings_of
from grpo_ao.config import TrainConfig, changeable_names
from grpo_ao.errors import UserError
from grpo_ao.files import (
    RunFolder,
    atomic_write_json,
    atomic_write_text,
    read_jsonl,
    record_judge,
)
from grpo_ao.judges.limits import LimitedJudge, UnscoredLimit, tried_judge
from grpo_ao.judges.protocol import CheckedJudge
from grpo_ao.judges.reference import check_references
from grpo_ao.measuring.heldout import heldout_row, measure, scored_of_row, summarise
from grpo_ao.measuring.heldout_confidences import SAMPLED_PROBES, heldout_baselines
from grpo_ao.oracle.decoding import free_captures
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sampling import RolloutEngine
from grpo_ao.oracle.sharding import is_sharded, together
from grpo_ao.oracle.sources import resolve_files
from grpo_ao.oracle.store import ActivationStore, model_fingerprint
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.oracle.vllm.client import ServerRollouts, VllmRollouts
from grpo_ao.oracle.vllm.weights import lora_factors
from grpo_ao.probe import Probe
from grpo_ao.probes.load import data_digest, load_probes, num_layers_of
from grpo_ao.processes import Processes, take_over_fsdp
from grpo_ao.report.card import check_push, push_adapter, write_card
from grpo_ao.report.headline import headline_of
from grpo_ao.report.page import write_report
from grpo_ao.report.run_record import read_run
from grpo_ao.report.summary import MODES, draw_reliability, summary_table
from grpo_ao.reward import CalibratedReward, ScoredCompletion
from grpo_ao.terminal import headed, terminal
from grpo_ao.tracking import PhaseProgress, ProgressCallback, make_reporter
from grpo_ao.training.benchmarking import BenchmarkCallback, Benchmarking, benchmark_probes
from grpo_ao.training.checkpoints import (
    COMPLETE,
    CheckpointCallback,
    last_checkpoint,
    load_adapter,
    make_trainable,
)
from grpo_ao.training.fine_tuning import Target, fine_tune
from grpo_ao.training.monitor import Monitor
from grpo_ao.training.trainer import OracleGRPOTrainer
from grpo_ao.training.warm_start import make_targets, sample_answers

LEAST_PARSE_RATE = 0.95
BASELINES = "heldout_baselines.json"
CHECKED = 400


def run(config: TrainConfig) -> dict:
    """Train an oracle as ``config`` says; return what ``summary.json`` holds.

    Everything that can be refused without a model is refused before one is loaded.
    """
    started = time.perf_counter()
    divided = take_over_fsdp()
    processes = Processes()
    avoid_cudnn_attention()
    console = terminal(quiet=not processes.is_main)
    # What is downloaded is downloaded once; and no process goes on where the folder is refused.
    with processes.main_first():
        folder = RunFolder(config.output_dir, config.resume) if processes.is_main else None
        # The judge `local` is the model itself, so it can be tried only once that is loaded.
        judge = None if config.judge == "local" else tried_judge(config)
        base_folder = resolve_files(config.model, ["config.json"])
        check_start(config, processes, divided)
        train, heldout = load_probes(config, console, num_layers_of(base_folder))
        if config.judge == "reference":
            check_references([*train, *heldout])
        benchmarks = benchmark_probes(config, num_layers_of(base_folder))
        for warning in warnings_of(config, {probe.layer for probe in [*train, *heldout]}):
            console.print(headed("warning:", warning))
        if config.push_to_hub is not None and processes.is_main:
            check_push(config.push_to_hub)
        data = {"train": data_digest(train), "heldout": data_digest(heldout)}
        data |= {"benchmarks": data_digest(benchmarks)} if benchmarks else {}
        if folder is not None:
            free = changeable_names(TrainConfig)
            # A value that stopped the run before GRPO can be mended without losing the warm start.
            if last_checkpoint(config.output_dir / "checkpoints") is None:
                free |= {"trl"}
            defaults = dataclasses.asdict(TrainConfig())
            folder.write_record(dataclasses.asdict(config), data, free, defaults)
            if judge is not None:
                record_judge(folder.path, judge.identity)
    run_state = Run(config, processes, console, train, heldout, benchmarks, judge, divided)
    run_state.train()
    seconds = time.perf_counter() - started
    return run_state.finish(seconds)


def avoid_cudnn_attention() -> None:
    """Take another of torch's attention kernels in this process.

    On Hopper, from torch 2.11 on, cuDNN's backward gives NaN where a mask is given, the length is
    64 modulo 128 and a query (one in left padding) sees no key: PyTorch issue 196678. One such
    batch makes the whole adapter NaN.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


class Run:
    """One run: the oracle, its tables of probes, and what has been measured so far.

    Every process of a run goes through the same phases; only the main one writes files.
    """

    def __init__(
        self,
        config: TrainConfig,
        processes: Processes,
        console: Console,
        train: list[Probe],
        heldout: list[Probe],
        benchmarks: list[Probe],
        judge: CheckedJudge | None,
        divided: bool,
    ) -> None:
        self.config = config
        self.processes = processes
        self.folder = config.output_dir
        self.console = console
        self.oracle = Oracle.from_pretrained(
            config.model,
            config.oracle_lora_path,
            processes.device,
            load_in_4bit=config.load_in_4bit,
            divided=divided,
        )
        if judge is None:
            judge = tried_judge(config, self.oracle)
            if processes.is_main:
                record_judge(self.folder, judge.identity)
        self.judge = judge
        make_trainable(self.oracle)
        self.benchmarking = Benchmarking(config, processes, self.oracle, benchmarks)
        self.progress = PhaseProgress(console)
        base = model_fingerprint(config.model)
        self.train_table = self._table("training", train, base)
        self.heldout_table = self._table("held-out", heldout, base)
        self.measured: dict[str, dict[str, list[ScoredCompletion]]] = {}
        if config.rollout == "vllm":
            lora_factors(self.oracle.model)  # refuses an adapter that it could not merge later
        if config.vllm_servers:
            self._rollout_engine()  # a server that is not there is found out before the warm start

    def _table(self, name: str, probes: Sequence[Probe], base: str) -> ProbeTable:
        texts = len({probe.text for probe in probes})
        with self.progress.phase(f"activations of {name} texts", texts) as bar:
            if is_sharded(self.oracle.model):
                # The others take part in the passes of the main process, and wait afterwards.
                with together(self.oracle.model):
                    if self.processes.is_main:
                        self._store(probes, base, bar.to)
            # The main process reads the subject; the others find the store and open it.
            with self.processes.main_first():
                store = self._store(probes, base, bar.to)
            bar.to(texts)
        return ProbeTable.build(self.oracle, probes, store)

    def _store(
        self, probes: Sequence[Probe], base: str, progress: Callable[[int], None]
    ) -> ActivationStore:
        return ActivationStore.build(
            self.config.output_dir.parent / "activations",
            self.oracle.model,
            self.oracle.tokenizer,
            probes,
            base,
            progress=progress,
        )

    def train(self) -> None:
        """Measure, warm-start, run GRPO, measure."""
        if self.config.initial_eval:
            self._measure("before")
        if self.config.warm_start != "none":
            self._warm_start(self.config.warm_start)
        if self.config.max_steps:
            self._grpo()
        self.oracle.hook.clear()
        if self.processes.is_main:
            self.oracle.save_adapter(self.folder / "adapter")
        self._measure("after")
        self._baselines()

    def _baselines(self) -> None:
        """Measure what else could be had instead of the trained oracle's stated confidence."""
        path = self.folder / BASELINES
        if path.exists():
            return
        table, scored = self.heldout_table, self.measured["after"]["greedy"]
        count = (len(table) + min(len(table), SAMPLED_PROBES)) // self.processes.count
        with self.progress.phase("measuring baselines", count) as bar:
            found = heldout_baselines(
                self.processes, self.oracle, table, scored, self.config.max_new_tokens, bar.advance
            )
        if self.processes.is_main:
            atomic_write_json(path, found)

    def _measure(self, when: str) -> None:
        self.measured[when] = {mode: self._heldout(when, mode) for mode in MODES}
        self.benchmarking.ask(when, self.console, self.progress)

    def _heldout(self, when: str, mode: str) -> list[ScoredCompletion]:
        """Ask the held-out probes, or read what this run has measured already."""
        path = self.folder / f"heldout_{when}_{mode}.jsonl"
        probes = self.heldout_table.probes
        if path.exists():
            rows = read_jsonl(path)
            return [scored_of_row(row, probe) for row, probe in zip(rows, probes, strict=True)]
        temperature = self.config.temperature if mode == "sampled" else 0.0
        scored = self._ask(f"measuring {when}, {mode}", self.heldout_table, temperature)
        rows = [json.dumps(heldout_row(answer)) for answer in scored]
        if self.processes.is_main:
            atomic_write_text(path, "".join(row + "\n" for row in rows))
        return scored

    def _ask(self, phase: str, table: ProbeTable, temperature: float) -> list[ScoredCompletion]:
        """Ask every probe of ``table``, each process its share; return the answers of all."""
        self._seed()
        part = table.part(self.processes.share(range(len(table))))
        judge = LimitedJudge(self.judge, self.config.max_unscored)
        with self.progress.phase(phase, len(part)) as bar, together(self.oracle.model):
            scored = measure(
                self.oracle, part, judge, temperature, self.config.max_new_tokens, bar.to
            )
        return self.processes.gathered(scored)

    def _seed(self) -> None:
        # Processes that draw the same numbers would give their shares the same luck.
        set_seed(self.config.seed + self.processes.index)

    def _check_oracle(self, name: str) -> dict[str, float]:
        """Measure parse rate and accuracy on a part of the training probes."""
        part = self.train_table.part(range(min(CHECKED, len(self.train_table))))
        return summarise(self._ask(name, part, self.config.temperature))

    def _warm_start(self, mode: Literal["measured", "random"]) -> None:
        config, folder = self.config, self.folder / "warm_start"
        if (folder / COMPLETE).exists():
            load_adapter(self.oracle, folder)
            return
        if self.processes.is_main:
            folder.mkdir(exist_ok=True)
        before = self._check_oracle("parse rate before the warm start")
        targets = self._warm_start_targets(mode, folder / "samples.jsonl")
        with self.progress.phase("warm start", config.warm_start_steps) as bar:
            losses = fine_tune(
                self.processes,
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
        if self.processes.is_main:
            self.oracle.save_adapter(folder)
            summary = {"before": before, "after": after, "losses": losses}
            atomic_write_json(folder / "summary.json", summary)
            atomic_write_json(folder / COMPLETE, {"steps": config.warm_start_steps})

    def _warm_start_targets(self, mode: Literal["measured", "random"], path: Path) -> list[Target]:
        config = self.config
        rng = random.Random(f"warm start {config.seed}")
        size = min(config.warm_start_probes, len(self.train_table))
        rows = sorted(rng.sample(range(len(self.train_table)), size))
        self._seed()
        with self.progress.phase("sampling answers for the warm start", len(rows)) as bar:
            samples = sample_answers(
                self.processes,
                self.oracle,
                self.train_table,
                LimitedJudge(self.judge, config.max_unscored),
                rows,
                config.warm_start_samples if mode == "measured" else 1,
                config.temperature,
                config.max_new_tokens,
                path,
                bar.advance,
            )
        return make_targets(self.oracle.tokenizer, self.train_table, rows, samples, mode, rng)

    def _check_parse_rate(self) -> None:
        rate = self._check_oracle("parse rate before GRPO")["parse_rate"]
        if rate < LEAST_PARSE_RATE:
            raise UserError(
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
        probes = {probe.id: probe for probe in self.train_table.probes}
        # The judge `local` is the model that is busy meanwhile.
        ahead = config.judge != "local"
        reward = CalibratedReward(self.judge, probes, config.calibration_lambda, ahead)
        limit = UnscoredLimit(reward, config.max_unscored)
        free_captures()  # what measuring and the warm start sampled with
        with self.progress.phase("GRPO", config.max_steps) as bar:
            bar.advance(done)
            trainer = OracleGRPOTrainer(
                self.oracle,
                self.train_table,
                reward,
                self._rollout_engine(),
                trainer_config(config, self.processes),
                config.credit,
                config.scale_rewards,
                self._monitor(done) if self.processes.is_main else None,
                [
                    CheckpointCallback(self.oracle, self.processes),
                    ProgressCallback(self.progress),
                    BenchmarkCallback(self.benchmarking, config.eval_steps, self.console),
                    limit,
                ],
            )
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        limit.check()

    def _rollout_engine(self) -> RolloutEngine:
        config = self.config
        if config.rollout == "transformers":
            return self.oracle
        longest = max(len(prompt.input_ids) for prompt in self.train_table.prompts)
        length = longest + config.max_new_tokens
        if config.vllm_servers:
            return ServerRollouts(self.oracle, config.vllm_servers[self.processes.index], length)
        return VllmRollouts(self.oracle, config.vllm_gpu_memory, length, config.vllm)

    def _monitor(self, done: int) -> Monitor:
        settings = dataclasses.asdict(self.config)
        reporter = make_reporter(self.config.report_to, self.folder, settings)
        return Monitor(self.folder, reporter, self.config.plot_every, resume_at=done)

    def finish(self, seconds: float) -> dict:
        """Write ``summary.json``, figure, report and card, print the table, return the summary."""
        summary = {
            when: {mode: summarise(scored) for mode, scored in modes.items()}
            for when, modes in self.measured.items()
        }
        result = summary | {"seconds": round(seconds, 1)}
        if not self.processes.is_main:
            return result
        result["baselines"] = json.loads((self.folder / BASELINES).read_text())
        atomic_write_json(self.folder / "summary.json", result)
        picture = self.folder / "reliability.png"
        draw_reliability(picture, self.measured)
        self.console.print(summary_table(summary))
        self._publish()
        return result

    def _publish(self) -> None:
        """Write the report and the model card; push the adapter where that was asked for."""
        record = read_run(self.folder)
        headline = headline_of(record)
        report = write_report(record, headline)
        write_card(record, headline, self.config.push_to_hub)
        self.console.print(f"report: {report}   rows, metrics and adapter: {self.folder}")
        if self.config.push_to_hub is not None:
            address = push_adapter(self.folder, self.config.push_to_hub)
            self.console.print(f"pushed: {address}")
