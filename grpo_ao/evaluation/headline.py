"""The numbers that a run is judged by: before, after and their difference, with intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grpo_ao.calibration import calibration_summary
from grpo_ao.evaluation.run_record import MODES, WHEN, RunRecord

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
    """The held-out measurements of a run: metrics by mode, and how much they were measured on."""

    modes: dict[str, list[MetricLine]]
    probes: int
    texts: int

    @property
    def compared(self) -> bool:
        """Whether there is a measurement before and one after training."""
        return any(line.change for lines in self.modes.values() for line in lines)


def headline_of(record: RunRecord) -> Headline | None:
    """Compare a run's held-out measurements; None before the first."""
    if not record.heldout:
        return None
    modes = {}
    for mode in MODES:
        before, after = (record.heldout.get(f"{when} {mode}") for when in WHEN)
        if before or after:
            modes[mode] = metric_lines(before, after)
    rows = next(iter(record.heldout.values()))
    return Headline(modes, len(rows), len({row["text"] for row in rows}))


def metric_lines(before: Rows | None, after: Rows | None, draws: int = DRAWS) -> list[MetricLine]:
    """Compare two measurements of the same probes, or show the one that there is.

    Intervals are 95 % percentile intervals by bootstrap over texts: a text's questions are drawn
    together, and both measurements with the same texts, so that the difference is a paired one.
    """
    measured = {name: rows for name, rows in zip(WHEN, (before, after), strict=True) if rows}
    rows = list(measured.values())
    if len(rows) == 2 and [r["probe_id"] for r in rows[0]] != [r["probe_id"] for r in rows[1]]:
        raise ValueError("the measurements before and after are not of the same probes.")
    summaries = [_summary_function(part) for part in rows]
    texts = np.array([row["text"] for row in rows[0]])
    whole = np.arange(len(texts))

    def values(index_N: np.ndarray) -> np.ndarray:
        """Return the metrics of each measurement, and of the last less the first."""
        found = np.array([list(summary(index_N).values()) for summary in summaries])
        return np.concatenate([found, found[-1:] - found[:1]])

    of_all = values(whole)
    drawn = np.array([values(index_N) for index_N in _draws_of_texts(texts, draws)])
    lines = []
    for m, metric in enumerate(summaries[0](whole)):
        estimates = [_estimate(of_all[c, m], drawn[:, c, m]) for c in range(len(of_all))]
        shown = dict(zip(measured, estimates, strict=False))
        change = estimates[-1] if len(rows) == 2 else None
        lines.append(MetricLine(metric, shown.get("before"), shown.get("after"), change))
    return [line for line in lines if line.metric != "n"]


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


def _draws_of_texts(texts: np.ndarray, draws: int) -> list[np.ndarray]:
    _, inverse = np.unique(texts, return_inverse=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    rng = np.random.default_rng(0)
    return [
        np.concatenate([members[c] for c in rng.integers(len(members), size=len(members))])
        for _ in range(draws)
    ]


def _estimate(value: float, drawn_R: np.ndarray) -> Estimate:
    known = drawn_R[~np.isnan(drawn_R)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Estimate(float(value), float(low), float(high))
