"""The numbers that a run is judged by: before, after and their difference, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grpo_ao.answer import Answer
from grpo_ao.calibration import perfect_ece_interval
from grpo_ao.measuring.metrics import Columns, Measurement, measure, measure_difference
from grpo_ao.report.run_record import MODES, WHEN, RunRecord

DRAWS = 500
# Name and direction of what is better; None where neither is.
METRICS = {
    "auroc_within": ("AUROC within families", "higher"),
    "calibration_error": ("Calibration error (RMS, debiased)", "lower"),
    "brier_all": ("Brier, unparsed as 50 % on wrong", "lower"),
    "ece10": ("ECE, 10 bins", "lower"),
    "auroc": ("AUROC", "higher"),
    "brier": ("Brier", "lower"),
    "informativeness": ("Informativeness", "higher"),
    "brier_isotonic": ("Brier after isotonic recalibration", "lower"),
    "confidence_mean": ("Confidence, mean", None),
    "confidence_std": ("Confidence, standard deviation", None),
    "parse_rate": ("Parse rate", "higher"),
}


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float
    p: float | None = None
    """Of a difference: the p-value of there being none."""


@dataclass(frozen=True)
class MetricLine:
    """One metric of a measurement before and after training, and the difference."""

    metric: str
    before: Estimate | None
    after: Estimate | None
    change: Estimate | None


@dataclass(frozen=True)
class Headline:
    """The held-out measurements of a run: metrics by mode, and how much they were measured on.

    ``perfect_ece`` is the 95 % interval of the ECE of a perfect forecaster that states the
    confidences of the last sampled measurement.
    """

    modes: dict[str, list[MetricLine]]
    probes: int
    texts: int
    perfect_ece: tuple[float, float]

    @property
    def compared(self) -> bool:
        """Whether there is a measurement before and one after training."""
        return any(line.change for lines in self.modes.values() for line in lines)

    @property
    def measured(self) -> str:
        """The last measurement: ``before`` or ``after``."""
        (line, *_) = next(iter(self.modes.values()))
        return "after" if line.after else "before"


def headline_of(record: RunRecord, draws: int = DRAWS) -> Headline | None:
    """Compare a run's held-out measurements; None before the first."""
    if not record.heldout:
        return None
    modes = {}
    for mode in MODES:
        before, after = (record.heldout.get(f"{when} {mode}") for when in WHEN)
        if before or after:
            modes[mode] = metric_lines(before, after, draws)
    last = [part for name, part in record.heldout.items() if name.endswith(next(iter(modes)))][-1]
    columns = Columns.of(last)
    stated = columns.take(np.flatnonzero(columns.is_known))
    _, *perfect = perfect_ece_interval(*stated.known, stated.context_N)
    texts = {answer.probe.text for answer in last}
    return Headline(modes, len(last), len(texts), (perfect[0], perfect[1]))


def metric_lines(
    before: Sequence[Answer] | None, after: Sequence[Answer] | None, draws: int = DRAWS
) -> list[MetricLine]:
    """Compare two measurements of the same probes, or show the one that there is.

    Intervals are 95 % percentile intervals by bootstrap over texts: a text's questions are drawn
    together, and both measurements with the same texts, so that the difference is a paired one.
    """
    found: dict[str, Measurement] = {}
    if before and after:
        if [answer.probe.id for answer in before] != [answer.probe.id for answer in after]:
            raise ValueError("the measurements before and after are not of the same probes.")
        found["change"] = measure_difference(Columns.of(after), Columns.of(before), draws)
    for name, answers in zip(WHEN, (before, after), strict=True):
        if answers:
            found[name] = measure(Columns.of(answers), draws)

    def estimate(name: str, metric: str) -> Estimate | None:
        return Estimate(**found[name][metric]) if name in found else None

    columns = (*WHEN, "change")
    return [MetricLine(m, *(estimate(column, m) for column in columns)) for m in METRICS]
