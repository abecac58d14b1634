"""Watch a run: metrics of every step, alerts, reliability diagrams, sample rollouts."""

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
from transformers import TrainerCallback

from grpo_ao.answer import Answer
from grpo_ao.calibration import auroc, brier, ece
from grpo_ao.discrimination import within_family_auroc
from grpo_ao.files import (
    append_jsonl,
    keep_rows,
    read_faults,
    read_json,
    read_jsonl,
    why_not_whole,
    write_faults,
)
from grpo_ao.measuring.metrics import Columns
from grpo_ao.report.plots import Panel, reliability_diagram, save
from grpo_ao.terminal import headed, terminal
from grpo_ao.tracking import Reporter
from grpo_ao.training.alerts import Metrics, check_alerts, greedy_collapse, series
from grpo_ao.training.checkpoints import COMPLETE

_ECE_WINDOW = 2000
_WINDOW = ("confidence", "informativeness", "family")
# What TRL logs of a step, and what it is called here.
_OF_TRL = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_ratio",
}
_IN_A_LINE = {
    "reward": "reward",
    "informativeness": "informativeness",
    "auroc_within_window": "AUROC within families",
    "brier": "Brier",
    "confidence": "confidence",
    "confidence_std": "\u00b1",
}
_TABLE_ROWS = 16


def step_metrics(answers: Sequence[Answer]) -> Metrics:
    """Return the metrics of one step's completions; confidence metrics are of parsed ones.

    Informativeness counts an unparsed completion as 0 and leaves out one that the judge left
    without a grade, and so without a reward; it is NaN if that is all of them.
    """
    confidence, outcome = Columns.of(answers).known
    stated = np.array([a.confidence for a in answers if a.confidence is not None])
    unparsed = sum(not a.parsed for a in answers)
    graded = len(outcome) + unparsed
    rewards = [a.reward for a in answers if a.reward is not None]
    return {
        "reward": _mean(rewards),
        "brier": brier(confidence, outcome),
        "informativeness": float(outcome.sum()) / graded if graded else float("nan"),
        "confidence": _mean(stated),
        "confidence_std": float(stated.std()) if len(stated) else float("nan"),
        "auroc": auroc(confidence, outcome >= 0.5),
        "parse_rate": 1 - unparsed / len(answers),
        "unscored": sum(a.reward is None for a in answers) / len(answers),
        "answer_length": _mean([len(a.answer.split()) for a in answers]),
    }


def _mean(values) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def cut_back(folder: Path, step: int) -> None:
    """Drop what is there of later steps than ``step``, which are made again with other weights.

    Rows of a run's logs, answers to validation probes, measurements on the benchmarks, and the best
    adapter, if it is of such a step.
    """
    for path in _logs(folder):
        keep_rows(path, lambda row: row["step"] <= step)
    for path in folder.glob("validation/step_*.jsonl"):
        if _step_of(path) > step:
            path.unlink()
    for path in folder.glob("eval/step_*"):
        if _step_of(path) > step:
            shutil.rmtree(path)
    mark = folder / "best" / COMPLETE
    if why_not_whole(mark) is None and read_json(mark)["step"] > step:
        mark.unlink()
        shutil.rmtree(mark.parent)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _logs(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "metrics.jsonl", folder / "rollouts.jsonl", folder / "window.jsonl"


class Monitor:
    """Writes a run's ``metrics.jsonl``, ``rollouts.jsonl``, ``run.log``, ``plots/`` and alerts.

    ``resume_at`` is the step of the checkpoint that a run goes on from: what is there of later
    steps is dropped (``cut_back``). Every ``log_every`` steps it prints a line, and keeps it in
    ``run.log``; ``seconds_left`` tells of a step how long the run goes on after it.
    """

    def __init__(
        self,
        folder: Path,
        reporter: Reporter,
        plot_every: int,
        resume_at: int = 0,
        log_every: int = 10,
        seconds_left: Callable[[int], float] = lambda step: math.nan,
    ) -> None:
        self._metrics, self._rollouts, self._windows = _logs(folder)
        self._plots = folder / "plots"
        self._log = folder / "run.log"
        self._log_every = log_every
        self._seconds_left = seconds_left
        self._reporter = reporter
        self._plot_every = plot_every
        self._console = terminal()
        cut_back(folder, resume_at)
        rows = read_jsonl(self._metrics)
        self.history: list[Metrics] = [row for row in rows if "alert" not in row]
        self._active = {alert.name for alert in check_alerts(self.history)}
        self._window: deque[tuple[float, float, str]] = deque(maxlen=_ECE_WINDOW)
        with read_faults(self._windows):
            for row in read_jsonl(self._windows):
                self._window.extend(zip(*(row[name] for name in _WINDOW), strict=True))

    def record(
        self,
        step: int,
        answers: Sequence[Answer],
        truncated: float,
        advantages_std: float,
        kl: float | None,
        seconds: Mapping[str, float],
        sampling_gap: float | None = None,
        logs: Mapping[str, float] | None = None,
    ) -> Metrics:
        """Record the answers that a step made, and tell what there is to tell.

        ``truncated`` is the share of them that the length limit cut, ``seconds`` are by phase,
        ``logs`` is what TRL logs of the step. ``sampling_gap`` is the mean difference, a token,
        between the policy's log-probabilities and those that the rollout engine sampled by; None
        where the policy sampled itself.
        """
        self._widen_window(step, answers)
        tokens = sum(len(answer.token_ids) for answer in answers)
        metrics: Metrics = {
            "step": step,
            **step_metrics(answers),
            **self._window_metrics(),
            "advantage_std": advantages_std,
            "truncated": truncated,
            "kl": kl,
            "tokens_per_second": tokens / max(seconds.get("generate", 0), 1e-9),
        }
        if sampling_gap is not None:
            metrics["sampling_gap"] = sampling_gap
        metrics |= {f"seconds_{phase}": value for phase, value in seconds.items()}
        metrics |= {_OF_TRL[name]: value for name, value in (logs or {}).items() if name in _OF_TRL}
        before = int(self.history[-1]["step"] or 0) if self.history else 0
        self.history.append(metrics)
        append_jsonl(self._metrics, [metrics])
        numbers = {k: float(v) for k, v in metrics.items() if v is not None and k != "step"}
        self._reporter.scalars(step, numbers)
        self._raise_alerts(step)
        self._tell(step, before, answers)
        return metrics

    def _tell(self, step: int, before: int, answers: Sequence[Answer]) -> None:
        """Print a line and draw where it is time to, ``before`` being the step recorded last."""
        # Not every step makes answers: the first that does, at or behind a multiple, is shown.
        if step // self._log_every > before // self._log_every:
            line = self._line(step)
            self._console.print(line, soft_wrap=True)
            self._keep(line)
        if step // self._plot_every > before // self._plot_every:
            self._show(step, answers)

    def _widen_window(self, step: int, answers: Sequence[Answer]) -> None:
        columns = Columns.of(answers)
        families = columns.family_N[columns.is_known].tolist()
        added = (*(known.tolist() for known in columns.known), families)
        self._window.extend(zip(*added, strict=True))
        row = dict(zip(_WINDOW, added, strict=True))
        append_jsonl(self._windows, [{"step": step, **row}])

    def _window_metrics(self) -> Metrics:
        confidence, outcome, family = self._window_arrays()
        return {
            "ece_window": ece(confidence, outcome),
            "auroc_within_window": within_family_auroc(confidence, outcome >= 0.5, family).auroc,
        }

    def _window_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        confidence, outcome, family = zip(*self._window, strict=True) if self._window else ((),) * 3
        return np.array(confidence, float), np.array(outcome, float), np.array(family, str)

    def _line(self, step: int) -> str:
        """Return what the steps since the last line were like, in the mean."""
        recent = self.history[-self._log_every :]

        def of(name: str) -> float:
            return _mean(series(recent, name))

        told = "  ".join(f"{title} {of(name):.3f}" for name, title in _IN_A_LINE.items())
        left = self._seconds_left(step)
        ends = "" if math.isnan(left) else f"  {timedelta(seconds=round(left))} left of the run"
        return f"step {step}  {told}  {of('seconds_step'):.2f} s/step{ends}"

    def _keep(self, line: str) -> None:
        with write_faults(self._log), self._log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    def _raise_alerts(self, step: int) -> None:
        """Say each alert when its condition begins, not again while it lasts."""
        alerts = check_alerts(self.history)
        for alert in alerts:
            if alert.name in self._active:
                continue
            self.say(step, alert.name, f"{alert.message}. What to do: {alert.what_to_do}.")
        self._active = {alert.name for alert in alerts}

    def validated(self, step: int, answers: Sequence[Answer]) -> None:
        """Take in greedy answers to validation probes; alert where their numbers are all alike.

        Once for a step: a run that is resumed takes in its best step's answers again.
        """
        stated = [answer.confidence for answer in answers if answer.confidence is not None]
        alert = greedy_collapse(stated)
        said = {(row["step"], row.get("alert")) for row in read_jsonl(self._metrics)}
        if alert is not None and (step, alert.name) not in said:
            self.say(step, alert.name, f"{alert.message}. What to do: {alert.what_to_do}.")

    def say(self, step: int, alert: str, text: str) -> None:
        """Log an alert, wherever alerts go."""
        append_jsonl(self._metrics, [{"step": step, "alert": alert, "message": text}])
        heading = f"alert at step {step}:"
        self._console.print(headed(heading, text))
        self._keep(f"{heading} {text}")
        self._reporter.alert(alert, text)

    def _show(self, step: int, answers: Sequence[Answer]) -> None:
        rows = [{"step": step, **answer.to_row()} for answer in answers[:_TABLE_ROWS]]
        append_jsonl(self._rollouts, rows)
        self._reporter.table(step, "rollouts", rows)
        if self._window:
            path = self._plots / f"reliability_{step:06d}.png"
            title = f"training, up to step {step}"
            confidence, outcome, _ = self._window_arrays()
            save(reliability_diagram([Panel(title, confidence, outcome)]), path)
            self._reporter.image(step, "reliability", path)


class BenchmarkCallback(TrainerCallback):
    """Calls ``measure`` every ``eval_steps`` steps, but not at the last: that is ``after``.

    Where the step has a checkpoint, that is written first, for measuring takes long. ``measure``
    does nothing of what it has done.
    """

    def __init__(self, measure: Callable[[str], None], eval_steps: int) -> None:
        self._measure = measure
        self._eval_steps = eval_steps

    def on_train_begin(self, args, state, control, **kwargs):
        """Measure the step that a run goes on from."""
        if state.global_step:
            self.on_save(args, state, control)

    def on_step_end(self, args, state, control, **kwargs):
        """Measure the adapter that this step made, where no checkpoint will be written."""
        if not control.should_save:
            self.on_save(args, state, control)

    def on_save(self, args, state, control, **kwargs):
        """Measure the adapter that this step made, if it is time to."""
        step = state.global_step
        if step % self._eval_steps == 0 and step < state.max_steps:
            self._measure(f"step_{step:06d}")
