"""The numbers that a run is judged by: before, after and their difference, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grpo_ao.answer import Answer
from grpo_ao.calibration import perfect_ece_interval
from grpo_ao.measuring.metrics import Columns, Measurement, measure, measure_difference
from grpo_ao.report.run_record import MODES, WHEN, RunRecord

DRAWS = 500
# Which measurement less which.
CHANGES = {"change": ("after", "before"), "change by GRPO": ("after", "warm start")}
# Name and direction of what is better; None where neither is.
METRICS = {
    "auroc_within": ("AUROC within families", "higher"),
    "calibration_error": ("Calibration error (RMS, debiased)", "lower"),
    "brier_all": ("Brier, unparsed as 50 % on wrong", "lower"),
    "ece10": ("ECE, 10 bins", "lower"),
    "auroc": ("AUROC", "higher"),
    "somers_d": ("Somers' D over grades", "higher"),
    "risk_at_80": ("Share wrong of the surest 80 %", "lower"),
    "aurc": ("Area under risk-coverage", "lower"),
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
    """One metric: its estimates in each measurement, then its changes, by name."""

    metric: str
    estimates: dict[str, Estimate]


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
        return any("change" in line.estimates for lines in self.modes.values() for line in lines)

    @property
    def measured(self) -> str:
        """The last measurement: ``before``, ``warm start`` or ``after``."""
        lines = [lines[0] for lines in self.modes.values()]
        return [when for when in WHEN if any(when in line.estimates for line in lines)][-1]


def headline_of(record: RunRecord, draws: int = DRAWS) -> Headline | None:
    """Compare a run's held-out measurements; None before the first."""
    if not record.heldout:
        return None
    modes = {}
    for mode in MODES:
        names = {when: f"{when} {mode}" for when in WHEN}
        measured = {w: record.heldout[name] for w, name in names.items() if name in record.heldout}
        if measured:
            modes[mode] = metric_lines(measured, draws)
    last = [part for name, part in record.heldout.items() if name.endswith(next(iter(modes)))][-1]
    columns = Columns.of(last)
    stated = columns.take(np.flatnonzero(columns.is_known))
    _, *perfect = perfect_ece_interval(*stated.known, stated.context_N)
    texts = {answer.probe.text for answer in last}
    return Headline(modes, len(last), len(texts), (perfect[0], perfect[1]))


def metric_lines(measured: Mapping[str, Sequence[Answer]], draws: int = DRAWS) -> list[MetricLine]:
    """Compare the measurements of the same probes that there are.

    Intervals are 95 % percentile intervals by bootstrap over texts: a text's questions are drawn
    together, and both measurements with the same texts, so that the difference is a paired one.
    """
    if len({tuple(a.probe.id for a in answers) for answers in measured.values()}) > 1:
        raise ValueError("the measurements are not of the same probes.")
    columns = {when: Columns.of(answers) for when, answers in measured.items()}
    found: dict[str, Measurement] = {w: measure(c, draws) for w, c in columns.items()}
    for change, (last, first) in CHANGES.items():
        if last in columns and first in columns:
            found[change] = measure_difference(columns[last], columns[first], draws)
    return [
        MetricLine(metric, {name: Estimate(**values[metric]) for name, values in found.items()})
        for metric in METRICS
    ]
