"""A training run from top to bottom: load, read, measure, warm start, GRPO, measure, report."""

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from grpo_ao import __version__
from grpo_ao.answer import Answer
from grpo_ao.checks import trainer_config
from grpo_ao.config import TrainConfig
from grpo_ao.errors import UserError
from grpo_ao.files import (
    Stopwatch,
    atomic_write_json,
    record_activations,
    record_judge,
    why_not_whole,
)
from grpo_ao.interruption import Interrupted, held_back
from grpo_ao.judges.factory import with_cache
from grpo_ao.judges.limits import LimitedJudge, tried_judge
from grpo_ao.judges.local import LocalJudge
from grpo_ao.judges.protocol import CheckedJudge
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.measuring.again import Controls
from grpo_ao.measuring.ask import Asking, ask
from grpo_ao.measuring.controls import with_wrong_activations
from grpo_ao.measuring.metrics import Columns, summary
from grpo_ao.measuring.reading import Control
from grpo_ao.oracle.decoding import free_captures
from grpo_ao.oracle.gguf import local_base
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sampling import RolloutEngine
from grpo_ao.oracle.store import SubjectReader, model_fingerprint
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.oracle.vllm.client import start_vllm
from grpo_ao.oracle.vllm.weights import lora_factors
from grpo_ao.prepare import Prepared, grades_file, prepare, suite_of
from grpo_ao.probe import Probe
from grpo_ao.probes.benchmarks import groups
from grpo_ao.processes import device_name
from grpo_ao.report.card import push_adapter, write_card
from grpo_ao.report.headline import headline_of
from grpo_ao.report.page import write_report
from grpo_ao.report.run_record import MODES, heldout_path, read_answers, read_run
from grpo_ao.report.tables import draw_run, in_short, own_parts, summary_tables, write_results
from grpo_ao.reward import reward_rule
from grpo_ao.terminal import headed
from grpo_ao.tracking import PhaseProgress, ProgressCallback, make_reporter
from grpo_ao.training.checkpoints import (
    COMPLETE,
    CheckpointCallback,
    StopCallback,
    last_checkpoint,
    load_adapter,
    make_trainable,
    mark_adapter,
    step_of,
)
from grpo_ao.training.fine_tuning import Start, fine_tune
from grpo_ao.training.monitor import BenchmarkCallback, Monitor
from grpo_ao.training.passes import avoid_cudnn_attention
from grpo_ao.training.rewarding import CalibratedReward
from grpo_ao.training.selection import Selection
from grpo_ao.training.trainer import OracleGRPOTrainer
from grpo_ao.training.warm_start import make_targets, parts

LEAST_PARSE_RATE = 0.95
CHECKED = 400
# Twenty samples of each of 2000 probes would take longer than all other measurements.
SAMPLED_PROBES = 400
CONTROL_PROBES = 300
_CONTROLS: tuple[Control, ...] = ("same_family", "noise")
_WARM_START_BATCH = 512
# What a run ships of which no step of GRPO is better.
UNTRAINED, WARM_START = "adapter as it was", "warm start"
# How the names of phases begin that are repeated after training.
_BEFORE = "measuring before"


def run(config: TrainConfig) -> dict:
    """Train an oracle as ``config`` says; return what ``summary.json`` holds."""
    started = time.perf_counter()
    avoid_cudnn_attention()
    config = dataclasses.replace(config, model=str(local_base(config.model)))
    prepared = prepare(config)
    with prepared.lock:
        this = Run(config, prepared, started)
        if config.initial_eval:
            this.measure("before")
        if config.warm_start != "none":
            this.warm_start(config.warm_start)
            if config.initial_eval and config.max_steps:
                this.measure("warm start", modes=("greedy",))
        if config.max_steps:
            this.grpo()
        this.save_adapter()
        this.measure("after")
        return this.report()


class Run:
    """One run: the oracle, and its tables of probes.

    Every process of a run goes through the same phases; only the main one writes files. A run that
    is resumed makes nothing again that it has made.
    """

    def __init__(self, config: TrainConfig, prepared: Prepared, started: float) -> None:
        self.config = config
        self.folder = config.output_dir
        self.ships = UNTRAINED if config.warm_start == "none" else WARM_START
        self.processes = prepared.processes
        self.console = prepared.console
        self.progress = PhaseProgress(self.console)
        self.monitor: Monitor | None = None  # of GRPO, in the main process
        self.stopwatch = Stopwatch(self.folder / "run.json", started)
        report_to = config.report_to if self.processes.is_main else ()
        self.reporter = make_reporter(report_to, self.folder, dataclasses.asdict(config))
        self.oracle = Oracle.load(prepared.sources, divided=prepared.sharded)
        make_trainable(self.oracle)
        spec = self.oracle.spec
        read = spec.layers(self.oracle.num_layers, config.layers, config.layer_percents)
        self.oracle.spec = spec.trained_on(read)
        base = model_fingerprint(config.model)
        self.judge = prepared.judge or self._local_judge(base)
        self.limited_judge = LimitedJudge(self.judge, config.max_unscored)
        probes = prepared.probes
        reader = SubjectReader(
            self.oracle.model,
            prepared.texts,
            base,
            self.folder.parent / "activations",
            self.progress,
            self.processes,
        )
        table = self._table(reader, "training", [*probes.warm_start, *probes.grpo])
        self.wrong, self.train_table = with_wrong_activations(table, config.wrong_activations)
        self.warm_start_rows = range(len(probes.warm_start))
        self.grpo_rows = range(len(probes.warm_start), len(table))
        self.validation_table = self._table(reader, "validation", probes.validation)
        self.heldout_table = self._table(reader, "held-out", probes.heldout)
        self.benchmark_table = None
        if prepared.benchmarks:
            self.benchmark_table = self._table(reader, "benchmark", prepared.benchmarks)
        if config.rollout == "vllm":
            lora_factors(self.oracle.model)  # refuses an adapter that it could not merge later
        if config.vllm_servers:
            self._rollout_engine()  # a server that is not there is found out before the warm start

    def _local_judge(self, base: str) -> CheckedJudge:
        local = LocalJudge(self.oracle.model, self.oracle.tokenizer, base)
        judge = with_cache(tried_judge(self.config, local), grades_file(self.config))
        if self.processes.is_main:
            record_judge(self.folder, judge.identity)
        return judge

    def _table(self, reader: SubjectReader, name: str, probes: Sequence[Probe]) -> ProbeTable:
        phase = f"activations of {name} texts"
        store = reader.read(phase, probes, self.config.subject_lora)
        with self.processes.main_first():
            if self.processes.is_main:
                record_activations(self.folder, name, store.path.stem)
        return ProbeTable.build(self.oracle, probes, store)

    # Measuring

    def measure(
        self, when: Literal["before", "warm start", "after"], modes: Sequence[str] = MODES
    ) -> None:
        """Ask the held-out probes, sampled and greedy, and the benchmarks.

        After training, ask some of the probes again on another text's activations and on noise.
        """
        given, agreement = {}, SAMPLED_PROBES if when == "after" else 0
        for mode in modes:
            path, how = heldout_path(self.folder, when, mode), self._how(mode, agreement)
            given[mode] = self._ask(f"measuring {when}, {mode}", self.heldout_table, how, path)
        if when == "after":
            self._ask_controls(given["greedy"])
        self.measure_benchmarks(when.replace(" ", "_"))
        self._keep_time()

    def _keep_time(self) -> None:
        if self.processes.is_main:
            device = device_name(self.processes.device)
            self.stopwatch.keep(self.progress.seconds(), device)

    def _ask_controls(self, answers: Sequence[Answer]) -> None:
        count = min(CONTROL_PROBES, len(answers))
        with self.progress.phase("asking of other activations", count * len(_CONTROLS)) as bar:
            Controls(
                self.oracle,
                self.heldout_table,
                answers,
                self.limited_judge,
                Asking(self.config.max_new_tokens),
                self.processes,
                count,
                self.folder / "controls.jsonl",
                {},
                bar.advance,
            ).readings(_CONTROLS)

    def _how(self, mode: str, agreement: int = 0) -> Asking:
        how = Asking(self.config.max_new_tokens, seed=self.config.seed)
        if mode == "sampled":
            return how._replace(temperature=self.config.temperature)
        return how._replace(probabilities=True, agreement=agreement)

    def _ask(
        self, phase: str, table: ProbeTable, how: Asking, path: Path | None = None
    ) -> list[Answer]:
        own = (self.oracle, table, self.limited_judge, how, self.processes, path)
        with self.progress.phase(phase, len(table)) as bar:
            return ask(*own, progress=bar.advance)

    def measure_benchmarks(self, name: str) -> None:
        """Ask the oracle the benchmarks, greedily, and compare it with what it was ``before``.

        After training it is compared with the warm-started oracle, too. Agreement is not measured,
        since its samples take long: ``evaluate`` does that.
        """
        folder = self.folder / "eval" / name
        if self.benchmark_table is None or (folder / "metrics.json").exists():
            return
        started = time.perf_counter()
        if self.processes.is_main:
            folder.mkdir(parents=True, exist_ok=True)
        how = Asking(self.config.max_new_tokens, probabilities=True)
        path = folder / "rows.jsonl"
        table, label = self.benchmark_table, {"oracle": name}
        answers = ask(self.oracle, table, ReferenceJudge(), how, self.processes, path, label)
        if self.processes.is_main:
            self._write_benchmarks(folder, answers, time.perf_counter() - started)
        self.processes.wait()

    def _write_benchmarks(self, folder: Path, answers: list[Answer], seconds: float) -> None:
        config, measured = self.config, {folder.name: answers}
        for earlier in ("before", "warm_start") if folder.name == "after" else ("before",):
            compared = read_answers(folder.parent / earlier / "rows.jsonl")
            if folder.name != earlier and len(compared) == len(answers):
                measured[earlier] = compared
        settings = {
            "suite": suite_of(config),
            "benchmarks": config.benchmarks,
            "num_contexts": config.eval_contexts,
            "one_layer": True,
        }
        families = list(dict.fromkeys(answer.probe.family for answer in answers))
        pooled = groups(suite_of(config), families)
        metrics = write_results(folder, settings, measured, pooled, seconds)
        for oracle in own_parts(metrics):
            shown = f"benchmarks, {folder.name}, {oracle['kind']} questions: {in_short(oracle)}"
            self.console.print(shown, highlight=False)

    def _check_oracle(self, name: str) -> dict[str, float]:
        """Measure parse rate and accuracy on a part of the training probes."""
        part = self.train_table.part(range(min(CHECKED, len(self.train_table))))
        return summary(Columns.of(self._ask(name, part, self._how("sampled"))))

    # Training

    def warm_start(self, mode: Literal["measured", "random"]) -> None:
        """Teach the tag, on the oracle's own answers."""
        config, folder = self.config, self.folder / "warm_start"
        if (folder / COMPLETE).exists():
            fault = why_not_whole(folder / COMPLETE)
            if fault is None:
                load_adapter(self.oracle, folder)
                return
            self._warn(f"the warm start in {folder} is made anew, for {fault}.")
        if self.processes.is_main:
            folder.mkdir(exist_ok=True)
        before = self._check_oracle("parse rate before the warm start")
        rows, answers = self._warm_start_answers(folder / "answers.jsonl")
        with self.progress.phase("warm start", config.warm_start_steps) as bar:
            losses = self._teach(mode, rows, answers, bar.advance)
        after = self._check_oracle("parse rate after the warm start")
        if self.processes.is_main:
            self.oracle.save_adapter(folder)
            found = {"before": before, "after": after, "losses": losses}
            atomic_write_json(folder / "summary.json", found)
            curve = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
            self.reporter.table(0, "warm_start", curve)
            mark_adapter(folder, steps=config.warm_start_steps)
        self._keep_time()

    def _warm_start_answers(self, path: Path) -> tuple[list[int], list[Answer]]:
        """Return the rows that the warm start asks, and the graded greedy answer to each."""
        config = self.config
        rng = random.Random(f"warm start {config.seed}")
        size = min(config.warm_start_probes, len(self.warm_start_rows))
        rows = sorted(rng.sample(self.warm_start_rows, size))
        how = self._how("greedy")._replace(batch_size=_WARM_START_BATCH)
        return rows, self._ask(
            "answering for the warm start", self.train_table.part(rows), how, path
        )

    def _teach(
        self,
        mode: Literal["measured", "random"],
        rows: Sequence[int],
        answers: Sequence[Answer],
        advance: Callable[[int], None],
    ) -> list[float]:
        """Teach each part of the questions its numbers; return the losses."""
        config, start = self.config, Start(self.oracle)
        rng, losses = random.Random(f"numbers {config.seed}"), []
        for part, steps, numbers_of in parts(mode, len(rows), config.warm_start_steps):
            own, given = rows[part], answers[part]
            wrong = {place for place, row in enumerate(own) if row in self.wrong}
            table = self.train_table.part(own)
            numbers = numbers_of(self.oracle, table, given, wrong, self.processes)
            targets = make_targets(self.oracle.tokenizer, own, given, numbers, rng, self.wrong)
            losses += fine_tune(
                self.processes,
                self.oracle,
                start,
                self.train_table,
                targets,
                steps,
                config.warm_start_batch,
                config.warm_start_lr,
                config.seed,
                advance,
            )
        return losses

    def _check_parse_rate(self) -> None:
        rate = self._check_oracle("parse rate before GRPO")["parse_rate"]
        if rate < LEAST_PARSE_RATE:
            raise UserError(
                f"only {rate:.0%} of the oracle's outputs are well-formed, below "
                f"{LEAST_PARSE_RATE:.0%}: GRPO does not start. Lengthen the warm start "
                "(--warm_start_steps, --warm_start_probes) or raise --warm_start_lr."
            )

    def grpo(self) -> None:
        """Train by TRL's GRPO, from the last checkpoint if there is one."""
        config = self.config
        checkpoint = last_checkpoint(self.folder / "checkpoints", self._warn)
        if checkpoint is None:
            self._check_parse_rate()
        done = 0 if checkpoint is None else step_of(checkpoint)
        with self.processes.main_first():  # which drops what the others then do not find
            if self.processes.is_main:
                self.monitor = self._monitor(done)
        selection = Selection(
            self.oracle, self.processes, self.folder / "best", self._validate, config.save_steps
        )
        selection.begin()
        if checkpoint is not None and done >= config.max_steps:
            # TRL would make one more step before it stops.
            load_adapter(self.oracle, checkpoint)
            selection.compare(done)
        else:
            self._make_steps(checkpoint, done, selection)
        found = selection.restore()
        if found is None:
            self.console.print(
                f"no step of GRPO was better than the {self.ships} on validation texts, so that is "
                "what this run ships: lower --lr, or give GRPO more questions."
            )
        else:
            self.ships = found

    def _make_steps(self, checkpoint: Path | None, done: int, selection: Selection) -> None:
        config = self.config
        table = self.train_table.part(self.grpo_rows)
        # The judge `local` is the model that is busy meanwhile.
        ahead = config.judge != "local"
        rule = reward_rule(config.calibration_lambda, config.reward)
        reward = CalibratedReward(self.judge, rule, ahead)
        free_captures()  # what measuring and the warm start sampled with
        with self.progress.phase("GRPO", config.max_steps) as bar, held_back() as come:
            bar.advance(done)
            trainer = OracleGRPOTrainer(
                self.oracle,
                table,
                reward,
                self._rollout_engine(),
                trainer_config(config, self.processes),
                config.credit,
                config.scale_rewards,
                config.tag_outcome,
                self.monitor,
                config.max_unscored,
                [
                    # Before those that measure: they do it behind a checkpoint that is whole.
                    StopCallback(come, self.processes),
                    CheckpointCallback(self.oracle, self.processes, self._keep_time),
                    ProgressCallback(self.progress),
                    selection,
                    BenchmarkCallback(self.measure_benchmarks, config.eval_steps),
                ],
            )
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stopped: list[int] = self.processes.gathered(come)
        if any(stopped):
            step = trainer.state.global_step
            raise Interrupted(stopped[0], f" after GRPO step {step}, with a checkpoint")

    def _validate(self, step: int) -> list[Answer]:
        """Ask the validation probes of the oracle as it is after ``step`` steps, greedily."""
        how = Asking(self.config.max_new_tokens, probabilities=True)
        path = self.folder / "validation" / f"step_{step:06d}.jsonl"
        if self.processes.is_main:
            path.parent.mkdir(exist_ok=True)
        answers = ask(
            self.oracle, self.validation_table, self.limited_judge, how, self.processes, path
        )
        if self.monitor is not None:
            self.monitor.validated(step, answers)
        return answers

    def _warn(self, sentence: str) -> None:
        self.console.print(headed("warning:", sentence))

    def _rollout_engine(self) -> RolloutEngine:
        config = self.config
        if config.rollout == "transformers":
            return self.oracle
        server = config.vllm_servers[self.processes.index] if config.vllm_servers else None
        return start_vllm(
            self.oracle,
            self.train_table.prompts,
            config.max_new_tokens,
            server,
            config.vllm_gpu_memory,
            config.vllm,
        )

    def _monitor(self, done: int) -> Monitor:
        return Monitor(
            self.folder,
            self.reporter,
            self.config.plot_every,
            resume_at=done,
            log_every=self.config.log_every,
            seconds_left=partial(self._seconds_left, done),
        )

    def _seconds_left(self, begun_at: int, step: int) -> float:
        """Estimate how long the run goes on after ``step``, measurements included."""
        phases = self.stopwatch.phases(self.progress.seconds())
        each = self.progress.seconds()["GRPO"] / (step - begun_at)
        measured = [seconds for name, seconds in phases.items() if name.startswith(_BEFORE)]
        return each * (self.config.max_steps - step) + sum(measured)

    # The end

    def save_adapter(self) -> None:
        """Write the trained adapter, and beside it what trained its confidence."""
        self.oracle.hook.clear()
        how = self._calibrated_by()
        if how is not None:
            self.oracle.spec = dataclasses.replace(
                self.oracle.spec, calibrated=bool(how), calibrated_by=how
            )
        if self.processes.is_main:
            self.oracle.save_adapter(self.folder / "adapter")

    def _calibrated_by(self) -> str | None:
        """Say what taught the confidence: "" if nothing did, None if the adapter is as it was."""
        config = self.config
        by_grpo = self.ships not in (UNTRAINED, WARM_START)
        if by_grpo and (config.reward is not None or config.calibration_lambda > 0):
            return f"grpo_ao {__version__}: {self.ships}"
        if config.warm_start == "measured":
            return f"grpo_ao {__version__}: the measured warm start"
        return "" if by_grpo or config.warm_start == "random" else None

    def report(self) -> dict:
        """Write ``summary.json``, figure, report and card; print the table; push; return it."""
        self.processes.wait()  # for the main one, which writes what is read here
        record = read_run(self.folder)
        summaries: dict[str, dict[str, dict[str, float]]] = {}
        for name, answers in record.heldout.items():
            when, mode = name.rsplit(" ", 1)
            summaries.setdefault(when, {})[mode] = summary(Columns.of(answers))
        found = summaries | {
            "ships": self.ships,
            "seconds": round(self.stopwatch.seconds, 1),
            "baselines": record.baselines,
        }
        self._keep_time()
        if self.processes.is_main:
            atomic_write_json(self.folder / "summary.json", found)
            draw_run(self.folder / "reliability.png", record.of_mode("sampled"))
            self._publish()
        return found

    def _publish(self) -> None:
        """Write the report and the model card; push the adapter where that was asked for."""
        config, record = self.config, read_run(self.folder)
        headline = headline_of(record)
        report = write_report(record, headline)
        write_card(record, headline, config.push_to_hub)
        if headline:
            self.reporter.scalars(record.last_step, headline.values)
            told = [{"finding": sentence} for sentence in headline.sentences]
            self.reporter.table(record.last_step, "heldout/findings", told)
            for table in summary_tables(headline):
                self.console.print(table)
            for sentence in headline.sentences:
                self.console.print(headed("held-out probes:", sentence), highlight=False)
        self.console.print(f"report: {report}   rows, metrics and adapter: {self.folder}")
        if config.push_to_hub is not None:
            address = push_adapter(self.folder, config.push_to_hub, config.push_public)
            self.console.print(f"pushed: {address}")
