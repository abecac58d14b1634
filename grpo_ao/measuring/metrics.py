"""All metrics of one measurement, with intervals: the structure of ``metrics.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from grpo_ao.calibration import (
    adaptive_ece,
    aurc,
    auroc,
    bootstrap_interval,
    bootstrap_intervals,
    brier,
    brier_parts,
    debiased_ece,
    ece,
    mce,
    nll,
    perfect_ece_interval,
    smooth_ece,
)

Measurement = dict[str, Any]
"""``{"n": items, "contexts": clusters, METRIC: {"value": v, "low": l, "high": h}, ...}``."""

# Kernel regression costs a hundred times what the other metrics cost.
_SMOOTH_DRAWS = 200


@dataclass(frozen=True)
class Answers:
    """Answers to N items, and how sure of each a method is.

    ``confidence_N`` lies in [0, 1] and means nothing where ``stated_N`` is False. ``correct_N`` is
    0 or 1 for every item; ``neither_N`` marks the answers that are neither yes nor no.
    ``context_N`` names each item's context, the unit of the bootstrap.
    """

    confidence_N: Float[np.ndarray, "items"]
    correct_N: Float[np.ndarray, "items"]
    stated_N: Bool[np.ndarray, "items"]
    neither_N: Bool[np.ndarray, "items"]
    context_N: np.ndarray

    def take(self, index_N: np.ndarray) -> "Answers":
        """Return some of the items, or all of them several times."""
        return Answers(
            self.confidence_N[index_N],
            self.correct_N[index_N],
            self.stated_N[index_N],
            self.neither_N[index_N],
            self.context_N[index_N],
        )

    def __len__(self) -> int:
        return len(self.correct_N)


def metric_values(answers: Answers) -> dict[str, float]:
    """Return every metric that is cheap enough to bootstrap, by name.

    Accuracy counts every item. Answers without a confidence count in ``parse_rate`` and in no
    metric of confidence.
    """
    confidence = answers.confidence_N[answers.stated_N]
    correct = answers.correct_N[answers.stated_N]
    parts, squared = brier_parts(confidence, correct), brier(confidence, correct)
    return {
        "accuracy": _mean(answers.correct_N),
        "parse_rate": _mean(answers.stated_N),
        "neither_rate": _mean(answers.neither_N),
        "confidence_mean": _mean(confidence),
        "confidence_std": float(confidence.std()) if len(confidence) else float("nan"),
        "ece10": ece(confidence, correct),
        "ece_mass": adaptive_ece(confidence, correct),
        "ece_debiased": debiased_ece(confidence, correct),
        "mce": mce(confidence, correct),
        "brier": squared,
        "brier_isotonic": squared - parts.reliability,
        "brier_reliability": parts.reliability,
        "brier_resolution": parts.resolution,
        "brier_uncertainty": parts.uncertainty,
        "nll": nll(confidence, correct),
        "auroc": auroc(confidence, correct >= 0.5),
        "aurc": aurc(confidence, correct),
    }


def measure(answers: Answers, draws: int = 1000, smooth_interval: bool = False) -> Measurement:
    """Return every metric with its 95 % interval by bootstrap over contexts.

    ``ece_smooth`` has an interval only if asked for; it is slow. ``ece10_perfect`` is the mean and
    the interval of the ECE that a perfect forecaster would have at these confidences.
    """
    values = metric_values(answers)
    intervals = bootstrap_intervals(
        lambda index: metric_values(answers.take(index)), answers.context_N, draws=draws
    )
    result: Measurement = {"n": len(answers), "contexts": len(set(answers.context_N.tolist()))}
    result |= {name: _entry(values[name], intervals[name]) for name in values}
    result["ece_smooth"] = _smooth(answers, min(draws, _SMOOTH_DRAWS) if smooth_interval else 0)
    mean, low, high = perfect_ece_interval(answers.confidence_N[answers.stated_N])
    result["ece10_perfect"] = _entry(mean, (low, high))
    return result


def measure_difference(first: Answers, second: Answers, draws: int = 1000) -> Measurement:
    """Return first less second for every metric, on the same items in the same order.

    The interval is paired: each draw takes the same contexts for both.
    """
    if first.context_N.tolist() != second.context_N.tolist():
        raise ValueError("a paired difference needs two measurements of the same items.")
    values = _difference(metric_values(first), metric_values(second))
    intervals = bootstrap_intervals(
        lambda index: _difference(
            metric_values(first.take(index)), metric_values(second.take(index))
        ),
        first.context_N,
        draws=draws,
    )
    result: Measurement = {"n": len(first), "contexts": len(set(first.context_N.tolist()))}
    return result | {name: _entry(values[name], intervals[name]) for name in values}


def _difference(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {name: first[name] - second[name] for name in first}


def _smooth(answers: Answers, draws: int) -> dict[str, float | None]:
    def statistic(index: np.ndarray) -> float:
        part = answers.take(index)
        return smooth_ece(part.confidence_N[part.stated_N], part.correct_N[part.stated_N])

    value = statistic(np.arange(len(answers)))
    if not draws or np.isnan(value):
        return {"value": value, "low": None, "high": None}
    return _entry(value, bootstrap_interval(statistic, answers.context_N, draws=draws))


def _entry(value: float, interval: tuple[float, float]) -> dict[str, float | None]:
    return {"value": value, "low": interval[0], "high": interval[1]}


def _mean(values_N: np.ndarray) -> float:
    return float(values_N.mean()) if len(values_N) else float("nan")
