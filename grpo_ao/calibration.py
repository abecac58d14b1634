"""Calibration metrics: pure functions of confidences and outcomes, both in [0, 1].

An outcome is an informativeness: 0 or 1 for closed questions, a grade between for open ones.
Outputs that state no confidence are in none of these functions' arguments. A metric of no items
is NaN.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import isotonic_regression, minimize_scalar
from scipy.special import expit, logit, softmax
from sklearn.isotonic import IsotonicRegression

Array = Float[np.ndarray, "items"]


class Estimate(NamedTuple):
    """A value with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


_UNDEFINED = Estimate(float("nan"), float("nan"), float("nan"))
# Half of the step in which confidence is stated: a stated 0 or 100 % is not infinitely sure.
_MARGIN = 0.005


def equal_width_bins(confidence_N: Array, bins: int) -> np.ndarray:
    """Return each confidence's bin of ``bins`` equal ones on [0, 1].

    A confidence at an edge lies in the bin above: of ten bins, .3 is in [.3, .4), and the last is
    [.9, 1]. (Guo et al. count edges to the bin below; stated confidences often are edges.)
    """
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
    """Expected calibration error over bins of equal mass (Nguyen, O'Connor, arXiv 1508.05154)."""
    if not len(confidence_N):
        return float("nan")
    gaps, counts = bin_gaps(confidence_N, outcome_N, equal_mass_bins(confidence_N, bins))
    return float(np.average(gaps, weights=counts))


def smooth_ece(confidence_N: Array, outcome_N: Array) -> float:
    """Smooth calibration error of kernel regression (Blasiok, Nakkiran, arXiv 2309.12236)."""
    if not len(confidence_N):
        return float("nan")
    from relplot import smECE  # brings pandas and seaborn: seconds that training need not wait

    value: Any = smECE(confidence_N, outcome_N)
    return float(value)


def perfect_ece_interval(
    confidence_N: Array,
    outcome_N: Array,
    cluster_N: np.ndarray,
    bins: int = 10,
    draws: int = 1000,
) -> Estimate:
    """Return mean, 2.5 % and 97.5 % quantile of a perfect forecaster's ECE at these confidences.

    What finite data alone makes of the ECE of one who is calibrated (the consistency bars of
    Broecker and Smith 2007). Outcomes are drawn from the distribution of those given, tilted to the
    stated mean: 0 or 1 with the stated probability where all are 0 or 1. The items of a cluster
    have one luck: a question asked at six layers is right or wrong at all of them alike.
    """
    if not len(confidence_N):
        return _UNDEFINED
    _, cluster_N = np.unique(cluster_N, return_inverse=True)
    luck_SC = np.random.default_rng(0).random((draws, int(cluster_N.max()) + 1))
    levels, level_N = np.unique(confidence_N, return_inverse=True)
    grades, below_MK = _tilted(outcome_N, levels)
    surplus_SB = np.zeros((draws, bins))
    for m, bin_of_level in enumerate(equal_width_bins(levels, bins)):
        luck_SI = luck_SC[:, cluster_N[level_N == m]]
        drawn_SI = grades[np.searchsorted(below_MK[m, :-1], luck_SI, side="right")]
        surplus_SB[:, bin_of_level] += (drawn_SI - levels[m]).sum(axis=1)
    eces = np.abs(surplus_SB).sum(axis=1) / len(confidence_N)
    low, high = np.percentile(eces, [2.5, 97.5])
    return Estimate(float(eces.mean()), float(low), float(high))


def _tilted(outcome_N: Array, mean_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the grades, and for each mean the cumulative probabilities of their tilted shares.

    Exponential tilting changes a distribution least, in relative entropy, to give it a mean. One
    count of 0 and of 1 is added, so that every mean can be had.
    """
    grade_K, count_K = np.unique(np.append(outcome_N, [0.0, 1.0]), return_counts=True)

    def tilted(tilt_M: np.ndarray) -> np.ndarray:
        return softmax(np.log(count_K) + tilt_M[:, None] * grade_K, axis=1)

    low_M, high_M = np.full(len(mean_M), -1e3), np.full(len(mean_M), 1e3)
    for _ in range(60):
        middle_M = (low_M + high_M) / 2
        too_low_M = tilted(middle_M) @ grade_K < mean_M
        low_M = np.where(too_low_M, middle_M, low_M)
        high_M = np.where(too_low_M, high_M, middle_M)
    return grade_K, tilted(high_M).cumsum(axis=1)


def calibration_error(
    confidence_N: Array, outcome_N: Array, cluster_N: np.ndarray, bins: int = 10
) -> Estimate:
    """Root mean squared calibration error over bins of equal mass, without what chance adds.

    A bin's squared gap is estimated from products of different clusters' errors alone, which has
    no bias (Kumar et al., arXiv 1909.10155); clusters are texts, whose questions share their luck.
    The variance of the weighted sum is that of a quadratic form of normal gaps, and the interval
    holds every true error from which the estimate is at most 1.96 of its deviations away, so that
    it reaches 0 where nothing is known to be wrong.
    """
    if not len(confidence_N):
        return _UNDEFINED
    _, cluster_N = np.unique(cluster_N, return_inverse=True)
    _, bin_N = np.unique(equal_mass_bins(confidence_N, bins), return_inverse=True)
    count_KB = _cluster_sums(np.ones(len(bin_N)), cluster_N, bin_N)
    error_KB = _cluster_sums(confidence_N - outcome_N, cluster_N, bin_N)
    several = (count_KB > 0).sum(axis=0) > 1
    if not several.any():
        return _UNDEFINED
    count_KB, error_KB = count_KB[:, several], error_KB[:, several]
    count_B = count_KB.sum(axis=0)
    gap_B, weight_B = error_KB.sum(axis=0) / count_B, count_B / count_B.sum()
    products_B = error_KB.sum(axis=0) ** 2 - (error_KB**2).sum(axis=0)
    squared = float(weight_B @ (products_B / (count_B**2 - (count_KB**2).sum(axis=0))))
    scaled_KB = (error_KB - gap_B * count_KB) * (np.sqrt(weight_B) / count_B)
    return Estimate(
        max(squared, 0.0) ** 0.5,
        *_root_interval(squared, np.sqrt(weight_B) * gap_B, scaled_KB.T @ scaled_KB),
    )


def _cluster_sums(values_N: np.ndarray, cluster_N: np.ndarray, bin_N: np.ndarray) -> np.ndarray:
    shape = (int(cluster_N.max()) + 1, int(bin_N.max()) + 1)
    cells = np.bincount(cluster_N * shape[1] + bin_N, values_N, minlength=shape[0] * shape[1])
    return cells.reshape(shape)


def _root_interval(
    squared: float, gap_B: np.ndarray, covariance_BB: np.ndarray
) -> tuple[float, float]:
    """Invert (squared - t)**2 <= 1.96**2 * (4 * slope * t + noise) for the true t >= 0."""
    noise = 2 * float((covariance_BB**2).sum())
    length = float(gap_B @ gap_B)
    slope = float(gap_B @ covariance_BB @ gap_B) / length if length else 0.0
    middle = squared + 2 * 1.96**2 * slope
    half = (max(middle**2 - squared**2 + 1.96**2 * noise, 0.0)) ** 0.5
    return max(middle - half, 0.0) ** 0.5, max(middle + half, 0.0) ** 0.5


def mce(confidence_N: Array, outcome_N: Array, bins: int = 10, min_count: int = 20) -> float:
    """Largest gap of an equal-width bin with at least ``min_count`` items; NaN if there is none.

    The maximum calibration error of Guo et al. (arXiv 1706.04599), without the bins in which it
    would be noise.
    """
    if not len(confidence_N):
        return float("nan")
    gaps, counts = bin_gaps(confidence_N, outcome_N, equal_width_bins(confidence_N, bins))
    enough = counts >= min_count
    return float(gaps[enough].max()) if enough.any() else float("nan")


def brier(confidence_N: Array, outcome_N: Array) -> float:
    """Mean squared difference of confidence and outcome (Brier 1950, outcomes in [0, 1])."""
    return float(np.mean((confidence_N - outcome_N) ** 2)) if len(confidence_N) else float("nan")


def brier_of_all(
    confidence_N: Array, outcome_N: Array, parsed_N: Bool[np.ndarray, "items"]
) -> float:
    """Brier score of all outputs: one without a number counts as 50 % on a wrong answer.

    Being silent where an answer is doubtful would else improve every metric of confidence.
    """
    return brier(np.where(parsed_N, confidence_N, 0.5), np.where(parsed_N, outcome_N, 0.0))


def isotonic_brier(confidence_N: Array, outcome_N: Array) -> float:
    """Brier score after the best monotone recalibration, fitted on the same items.

    What calibration alone could still give; in-sample, so a little optimistic.
    """
    if not len(confidence_N):
        return float("nan")
    # Equal confidences get equal values.
    _, inverse, counts = np.unique(confidence_N, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=outcome_N) / counts
    return brier(isotonic_regression(means, weights=counts).x[inverse], outcome_N)


class BrierParts(NamedTuple):
    """Brier score = reliability - resolution + uncertainty."""

    reliability: float
    resolution: float
    uncertainty: float


def brier_parts(confidence_N: Array, outcome_N: Array) -> BrierParts:
    """Take the Brier score apart (Murphy 1973), exactly and without bins.

    Reliability is what monotone recalibration would gain, resolution what the recalibrated
    confidences gain over the constant base rate, uncertainty the base rate's own Brier score: the
    CORP decomposition of Dimitriadis, Gneiting and Jordan (arXiv 2008.03033).
    """
    if not len(confidence_N):
        return BrierParts(float("nan"), float("nan"), float("nan"))
    recalibrated = isotonic_brier(confidence_N, outcome_N)
    uncertainty = float(outcome_N.var())
    reliability = brier(confidence_N, outcome_N) - recalibrated
    return BrierParts(reliability, uncertainty - recalibrated, uncertainty)


def nll(confidence_N: Array, outcome_N: Array) -> float:
    """Mean negative log-likelihood of the outcomes, in nats.

    Confidences are cut at .005 and .995, half a step of the stated per cent: one wrong answer at
    100 % would else make it infinite.
    """
    if not len(confidence_N):
        return float("nan")
    p = np.clip(confidence_N, _MARGIN, 1 - _MARGIN)
    return float(-np.mean(outcome_N * np.log(p) + (1 - outcome_N) * np.log(1 - p)))


def fit_isotonic(confidence_N: Array, outcome_N: Array) -> Callable[[Array], Array]:
    """Fit a monotone recalibration (Zadrozny, Elkan 2002); return what maps confidences."""
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    fitted.fit(confidence_N, outcome_N)
    return lambda new_N: np.asarray(fitted.predict(new_N), dtype=float)


Fit = Callable[[Array, Array], Callable[[Array], Array]]


def out_of_fold(
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray | float],
    fold_N: np.ndarray,
    part_N: np.ndarray,
) -> Array:
    """Predict each item by what is fitted on the other folds of its part: none is left out.

    ``predict(known, asked)`` fits to the items ``known``, by their indices, and returns a value for
    each of the items ``asked``.
    """
    predicted_N = np.empty(len(fold_N))
    for part, fold in sorted(set(zip(part_N.tolist(), fold_N.tolist(), strict=True))):
        inside_N, own_N = part_N == part, fold_N == fold
        asked = np.flatnonzero(inside_N & own_N)
        predicted_N[asked] = predict(np.flatnonzero(inside_N & ~own_N), asked)
    return predicted_N


def fit_temperature(confidence_N: Array, outcome_N: Array) -> Callable[[Array], Array]:
    """Fit temperature scaling of the log odds (Guo et al., arXiv 1706.04599).

    One number T > 0 that minimises NLL; returns what maps confidences to
    ``sigmoid(logit(c) / T)``, cut at .005 and .995 as in ``nll``.
    """

    def scaled(new_N: Array, log_temperature: float) -> Array:
        odds_N = logit(np.clip(new_N, _MARGIN, 1 - _MARGIN))
        return expit(odds_N * np.exp(-log_temperature))

    best: Any = minimize_scalar(
        lambda t: nll(scaled(confidence_N, t), outcome_N), bounds=(-5, 5), method="bounded"
    )
    return lambda new_N: scaled(new_N, float(best.x))


def auroc(confidence_N: Array, positive_N: Bool[np.ndarray, "items"]) -> float:
    """Chance that a right answer has the higher confidence, ties half; NaN with one class."""
    # The Mann-Whitney statistic: a bootstrap calls this thousands of times.
    right_P, wrong_W = (np.sort(confidence_N[which_N]) for which_N in (positive_N, ~positive_N))
    pairs = len(right_P) * len(wrong_W)
    below, not_above = (np.searchsorted(wrong_W, right_P, side).sum() for side in ("left", "right"))
    return float(below + not_above) / 2 / pairs if pairs else float("nan")


def risk_coverage(confidence_N: Array, outcome_N: Array) -> tuple[Array, Array]:
    """Return coverage and risk when only the k most confident answers are given, k = 1..N.

    Risk is the mean of 1 - outcome. Equal confidences come in random order: their risks are the
    expectation over it (El-Yaniv, Wiener 2010; Geifman, El-Yaniv, arXiv 1705.08500).
    """
    _, inverse, counts = np.unique(-confidence_N, return_inverse=True, return_counts=True)
    mean_loss = np.bincount(inverse, weights=1 - outcome_N) / counts
    given_N = np.arange(1, len(confidence_N) + 1)
    risk_N = np.cumsum(np.repeat(mean_loss, counts)) / given_N
    return given_N / max(1, len(confidence_N)), risk_N


def aurc(confidence_N: Array, outcome_N: Array) -> float:
    """Area under the risk-coverage curve: mean risk over all coverages; smaller is better."""
    if not len(confidence_N):
        return float("nan")
    return float(risk_coverage(confidence_N, outcome_N)[1].mean())


Statistics = Callable[[np.ndarray], Mapping[str, float]]


def bootstrap_intervals(
    statistics: Statistics, cluster_N: np.ndarray, draws: int = 1000
) -> dict[str, tuple[float, float]]:
    """Return the ``percentile_interval`` of each of ``statistics(item indices)``."""
    drawn = bootstrap_draws(statistics, cluster_N, draws)
    return {name: percentile_interval(values) for name, values in drawn.items()}


def bootstrap_draws(
    statistics: Statistics, cluster_N: np.ndarray, draws: int = 1000
) -> dict[str, Float[np.ndarray, "draws"]]:
    """Return each of ``statistics(item indices)`` for resampled items.

    Whole clusters are drawn with replacement (Field, Welsh 2007), so that items of one context
    stand or fall together; the same ones in every call.
    """
    _, inverse = np.unique(cluster_N, return_inverse=True)
    by_cluster_N, size_C = np.argsort(inverse, kind="stable"), np.bincount(inverse)
    start_C, rng = np.cumsum(size_C) - size_C, np.random.default_rng(0)

    def items(drawn_C: np.ndarray) -> np.ndarray:
        sizes = size_C[drawn_C]
        gaps = np.repeat(start_C[drawn_C] - (np.cumsum(sizes) - sizes), sizes)
        return by_cluster_N[gaps + np.arange(len(gaps))]

    count = len(size_C)
    drawn = [statistics(items(rng.integers(count, size=count))) for _ in range(draws)]
    return {name: np.array([values[name] for values in drawn]) for name in drawn[0]}


def percentile_interval(values: Float[np.ndarray, "draws"]) -> tuple[float, float]:
    """Return the 2.5 and 97.5 % percentiles of the draws that are not NaN; NaN where all are."""
    known = values[~np.isnan(values)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], cluster_N: np.ndarray, draws: int = 1000
) -> tuple[float, float]:
    """95 % percentile interval of one statistic: see ``bootstrap_intervals``."""
    return bootstrap_intervals(lambda index: {"": statistic(index)}, cluster_N, draws)[""]
