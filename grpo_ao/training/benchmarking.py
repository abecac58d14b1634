"""The benchmarks inside a run: asked before training, every so many steps, and after it."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from transformers import TrainerCallback

from grpo_ao.config import TrainConfig
from grpo_ao.evaluate import check_lengths
from grpo_ao.files import read_jsonl
from grpo_ao.measuring.ask import Asking, ask_probes, probes_of_items
from grpo_ao.oracle.layers import layer_index
from grpo_ao.oracle.loading import load_tokenizer
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.probe import Positions, Probe
from grpo_ao.probes.benchmarks import Suite, groups, load_items
from grpo_ao.processes import Processes
from grpo_ao.report.results import Rows, write_results
from grpo_ao.tracking import PhaseProgress

# Those of the paper's evaluation, in which the public oracles were trained.
_POSITIONS = ("token@-3", "window:50@-1")
_BATCH = 256


def benchmark_probes(config: TrainConfig, num_layers: int) -> list[Probe]:
    """Return the benchmarks' probes, each question at one layer; none if no benchmark is named.

    Raises UserError, in one sentence, where their data is not to be had.
    """
    if not config.benchmarks:
        return []
    suite = _suite(config)
    items = load_items(suite, config.benchmarks, config.eval_contexts, config.data_dir)
    layers = [layer_index(num_layers, percent) for percent in config.layer_percents]
    specs = (config.positions,) if suite == "mini" else _POSITIONS
    positions = [Positions.parse(spec) for spec in specs]
    probes = probes_of_items(items, layers, positions, one_layer=True)
    check_lengths(load_tokenizer(config.model), probes)
    return probes


def _suite(config: TrainConfig) -> Suite:
    return "mini" if config.questions == "mini" else "paper"


class Benchmarking:
    """Asks a run's benchmarks; every process its share, the main one writes.

    Answers are greedy, and no samples of them are drawn: the agreement of many samples is left to
    ``evaluate.py``. Results lie in ``eval/NAME`` of the run's folder; those that are there are not
    made again.
    """

    def __init__(
        self, config: TrainConfig, processes: Processes, oracle: Oracle, probes: Sequence[Probe]
    ) -> None:
        self.folder = config.output_dir / "eval"
        self.probes = probes
        self._config = config
        self._processes = processes
        self._oracle = oracle

    def ask(self, name: str, console: Console, progress: PhaseProgress | None = None) -> None:
        """Measure the oracle as it is now; compare with ``before`` where that was measured."""
        folder = self.folder / name
        if not self.probes or (folder / "metrics.json").exists():
            return
        started = time.perf_counter()
        if self._processes.is_main:
            folder.mkdir(parents=True, exist_ok=True)
        asking = Asking(self._config.max_new_tokens, _BATCH, agreement=False)
        path = folder / "rows.jsonl"
        args = (self._oracle, name, self.probes, path, asking)
        if progress is None:
            rows = ask_probes(*args, lambda _: None, self._processes)
        else:
            with progress.phase(f"benchmarks, {name}", len(self.probes)) as bar:
                rows = ask_probes(*args, bar.advance, self._processes)
        if self._processes.is_main:
            self._write(folder, name, rows, time.perf_counter() - started, console)
        self._processes.wait()

    def _write(self, folder: Path, name: str, rows: Rows, seconds: float, console: Console) -> None:
        measured: dict[str, Rows] = {name: rows}
        before = read_jsonl(self.folder / "before" / "rows.jsonl")
        if name != "before" and len(before) == len(rows):
            measured["before"] = before
        settings = {
            "suite": _suite(self._config),
            "benchmarks": self._config.benchmarks,
            "num_contexts": self._config.eval_contexts,
            "layer_percents": self._config.layer_percents,
            "one_layer": True,
        }
        pooled = groups(_suite(self._config), list(dict.fromkeys(p.family for p in self.probes)))
        metrics = write_results(folder, settings, measured, pooled, seconds)
        shown = metrics["oracles"][name]["groups"]["all"]
        values = (f"{m} {shown[m]['value']:.3f}" for m in ("accuracy", "ece10", "auroc", "brier"))
        console.print(f"benchmarks, {name}: {', '.join(values)}", highlight=False)


class BenchmarkCallback(TrainerCallback):
    """Asks the benchmarks every ``eval_steps`` steps, but not at the last: that is ``after``."""

    def __init__(self, benchmarking: Benchmarking, eval_steps: int, console: Console) -> None:
        self._benchmarking = benchmarking
        self._eval_steps = eval_steps
        self._console = console

    def on_step_end(self, args, state, control, **kwargs):
        """Measure the adapter that this step made."""
        step = state.global_step
        if step % self._eval_steps == 0 and step < state.max_steps:
            self._benchmarking.ask(f"step_{step:06d}", self._console)
