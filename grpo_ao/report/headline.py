"""The numbers that a run is judged by: before, after and their difference, with intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grpo_ao.calibration import bootstrap_intervals, calibration_summary, perfect_ece_interval
from grpo_ao.report.run_record import MODES, WHEN, RunRecord

DRAWS = 500
# Name and direction of what is better; None where neither is.
METRICS = {
    "ece10": ("ECE, 10 bins", "lower"),
    "auroc": ("AUROC", "higher"),
    "brier": ("Brier", "lower"),
    "informativeness": ("Informativeness", "higher"),
    "brier_isotonic": ("Brier after isotonic recalibration", "lower"),
    "confidence_mean": ("Confidence, mean", None),
    "confidence_std": ("Confidence, standard deviation", None),
    "parse_rate": ("Parse rate", "higher"),
}
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


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


def headline_of(record: RunRecord, draws: int = DRAWS) -> Headline | None:
    """Compare a run's held-out measurements; None before the first."""
    if not record.heldout:
        return None
    modes = {}
    for mode in MODES:
        before, after = (record.heldout.get(f"{when} {mode}") for when in WHEN)
        if before or after:
            modes[mode] = metric_lines(before, after, draws)
    rows = [part for name, part in record.heldout.items() if name.endswith(next(iter(modes)))][-1]
    stated = np.array([row["confidence"] / 100 for row in rows if row["parsed"]])
    _, *perfect = perfect_ece_interval(stated)
    return Headline(modes, len(rows), len({row["text"] for row in rows}), (perfect[0], perfect[1]))


def metric_lines(before: Rows | None, after: Rows | None, draws: int = DRAWS) -> list[MetricLine]:
    """Compare two measurements of the same probes, or show the one that there is.

    Intervals are 95 % percentile intervals by bootstrap over texts: a text's questions are drawn
    together, and both measurements with the same texts, so that the difference is a paired one.
    """
    measured = {name: rows for name, rows in zip(WHEN, (before, after), strict=True) if rows}
    first, last = next(iter(measured.values())), list(measured.values())[-1]
    if [row["probe_id"] for row in first] != [row["probe_id"] for row in last]:
        raise ValueError("the measurements before and after are not of the same probes.")
    summaries = {name: _summary_function(rows) for name, rows in measured.items()}
    texts = np.array([row["text"] for row in first])

    def statistics(index_N: np.ndarray) -> dict[str, float]:
        found = {name: summary(index_N) for name, summary in summaries.items()}
        if len(found) == 2:
            found["change"] = {m: found["after"][m] - found["before"][m] for m in METRICS}
        return {f"{name} {m}": values[m] for name, values in found.items() for m in METRICS}

    value = statistics(np.arange(len(texts)))
    interval = bootstrap_intervals(statistics, texts, draws=draws)

    def estimate(name: str) -> Estimate | None:
        return Estimate(value[name], *interval[name]) if name in value else None

    columns = (*WHEN, "change")
    return [MetricLine(m, *(estimate(f"{column} {m}") for column in columns)) for m in METRICS]


def outcome_arrays(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return confidence, score and parsed of rows, as ``heldout.arrays`` does of answers."""
    known = [row for row in rows if not row["parsed"] or row["score"] is not None]
    confidence = np.array([row["confidence"] / 100 for row in known], dtype=float)
    score = np.array([row["score"] or 0.0 for row in known], dtype=float)
    return confidence, score, np.array([row["parsed"] for row in known], dtype=bool)


def _summary_function(rows: Rows) -> Callable[[np.ndarray], dict[str, float]]:
    """Return the summary of the answers at some indices into ``rows``."""
    known = np.array([not row["parsed"] or row["score"] is not None for row in rows], dtype=bool)
    place_N = np.cumsum(known) - 1
    confidence, score, parsed = outcome_arrays(rows)

    def summary(index_N: np.ndarray) -> dict[str, float]:
        drawn = place_N[index_N[known[index_N]]]
        return calibration_summary(confidence[drawn], score[drawn], parsed[drawn])

    return summary
