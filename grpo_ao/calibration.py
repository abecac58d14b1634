"""Calibration metrics: pure functions of confidences and outcomes, both in [0, 1].

An outcome is an informativeness: 0 or 1 for closed questions, a grade between for open ones.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import isotonic_regression
from scipy.stats import rankdata

Array = Float[np.ndarray, "items"]


def equal_width_bins(confidence_N: Array, bins: int) -> np.ndarray:
    """Return each confidence's bin of ``bins`` equal ones on [0, 1]; 1 is in the last."""
    return np.minimum((confidence_N * bins + 1e-9).astype(int), bins - 1)


def equal_mass_bins(confidence_N: Array, bins: int) -> np.ndarray:
    """Return bins of (nearly) equal counts; equal confidences share a bin."""
    values, inverse, counts = np.unique(confidence_N, return_inverse=True, return_counts=True)
    before = np.cumsum(counts) - counts
    bin_of_value = np.minimum(before * bins // max(1, len(confidence_N)), bins - 1)
    return bin_of_value[inverse] if len(values) else inverse


def bin_gaps(
    confidence_N: Array, outcome_N: Array, bin_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return |mean confidence - mean outcome| and the count of each bin that is not empty."""
    counts = np.bincount(bin_N)
    filled = counts > 0
    gaps = np.bincount(bin_N, weights=confidence_N - outcome_N)[filled] / counts[filled]
    return np.abs(gaps), counts[filled]


def ece(confidence_N: Array, outcome_N: Array, bins: int = 10) -> float:
    """Expected calibration error over equal-width bins (Guo et al., arXiv 1706.04599)."""
    if not len(confidence_N):
        return float("nan")
    gaps, counts = bin_gaps(confidence_N, outcome_N, equal_width_bins(confidence_N, bins))
    return float(np.average(gaps, weights=counts))


def adaptive_ece(confidence_N: Array, outcome_N: Array, bins: int = 10) -> float:
    """Expected calibration error over bins of equal mass."""
    if not len(confidence_N):
        return float("nan")
    gaps, counts = bin_gaps(confidence_N, outcome_N, equal_mass_bins(confidence_N, bins))
    return float(np.average(gaps, weights=counts))


def mce(confidence_N: Array, outcome_N: Array, bins: int = 10, min_count: int = 20) -> float:
    """Largest gap of an equal-width bin with at least ``min_count`` items; NaN if there is none."""
    if not len(confidence_N):
        return float("nan")
    gaps, counts = bin_gaps(confidence_N, outcome_N, equal_width_bins(confidence_N, bins))
    enough = counts >= min_count
    return float(gaps[enough].max()) if enough.any() else float("nan")


def brier(confidence_N: Array, outcome_N: Array) -> float:
    """Mean squared difference of confidence and outcome (Brier 1950, outcomes in [0, 1])."""
    return float(np.mean((confidence_N - outcome_N) ** 2)) if len(confidence_N) else float("nan")


def isotonic_brier(confidence_N: Array, outcome_N: Array) -> float:
    """Brier score after the best monotone recalibration, fitted on the same items.

    What calibration alone could still give; in-sample, so a little optimistic.
    """
    if not len(confidence_N):
        return float("nan")
    _, inverse, counts = np.unique(confidence_N, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=outcome_N) / counts
    fitted = isotonic_regression(means, weights=counts).x
    return brier(fitted[inverse], outcome_N)


def auroc(confidence_N: Array, positive_N: Bool[np.ndarray, "items"]) -> float:
    """Chance that a right answer has the higher confidence, ties half; NaN with one class."""
    positives = int(positive_N.sum())
    pairs = positives * (len(positive_N) - positives)
    if not pairs:
        return float("nan")
    # The Mann-Whitney statistic: a bootstrap calls this thousands of times.
    rank_sum = float(rankdata(confidence_N)[positive_N].sum())
    return (rank_sum - positives * (positives + 1) / 2) / pairs


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    cluster_N: np.ndarray,
    seed: int = 0,
    draws: int = 1000,
) -> tuple[float, float]:
    """95 % percentile interval of ``statistic(item indices)``, clusters drawn with replacement.

    Draws for which the statistic is NaN are left out; NaN if that is all of them.
    """
    _, inverse = np.unique(cluster_N, return_inverse=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    rng = np.random.default_rng(seed)
    values = [
        statistic(
            np.concatenate([members[c] for c in rng.integers(len(members), size=len(members))])
        )
        for _ in range(draws)
    ]
    known = [value for value in values if not np.isnan(value)]
    low, high = np.percentile(known, [2.5, 97.5]) if known else (np.nan, np.nan)
    return float(low), float(high)


def calibration_summary(
    confidence_N: Array, informativeness_N: Array, parsed_N: Bool[np.ndarray, "items"]
) -> dict[str, float]:
    """Summarise one measurement.

    Unparsed outputs count in ``parse_rate``, and in ``informativeness`` as 0; they are in no
    metric of confidence, since they state none. AUROC is of confidence for informativeness of at
    least one half.
    """
    confidence, outcome = confidence_N[parsed_N], informativeness_N[parsed_N]
    return {
        "n": len(parsed_N),
        "informativeness": _mean(np.where(parsed_N, informativeness_N, 0.0)),
        "ece10": ece(confidence, outcome),
        "auroc": auroc(confidence, outcome >= 0.5),
        "brier": brier(confidence, outcome),
        "brier_isotonic": isotonic_brier(confidence, outcome),
        "confidence_mean": _mean(confidence),
        "confidence_std": float(confidence.std()) if len(confidence) else float("nan"),
        "parse_rate": _mean(parsed_N),
    }


def _mean(values_N: np.ndarray) -> float:
    return float(values_N.mean()) if len(values_N) else float("nan")
