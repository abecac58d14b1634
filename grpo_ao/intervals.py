"""How sure a comparison of two measurements is: paired differences, and many of them at once."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from grpo_ao.calibration import Statistics, bootstrap_draws


class Difference(NamedTuple):
    """First less second, its 95 % interval, and the p-value of there being no difference."""

    value: float
    low: float
    high: float
    p: float


class Resampled(NamedTuple):
    """Statistics of some items, and of each draw of a bootstrap over their clusters."""

    values: Mapping[str, float]
    drawn: Mapping[str, Float[np.ndarray, "draws"]]


def resampled(statistics: Statistics, cluster_N: np.ndarray, draws: int = 1000) -> Resampled:
    """Compute ``statistics(item indices)`` for all items, and for resampled ones."""
    values = statistics(np.arange(len(cluster_N)))
    return Resampled(values, bootstrap_draws(statistics, cluster_N, draws))


def paired_differences(first: Resampled, second: Resampled) -> dict[str, Difference]:
    """Compare two measurements of the same items in every statistic that both have.

    Both must be resampled over the same clusters, as often: then they have the same ones in every
    draw. The draws are moved to have the difference itself as their mean: an ECE, say, is larger in
    a resample than in its sample, and more so the smaller it is. A statistic that is NaN for the
    items is NaN throughout.
    """
    return {
        name: _difference(
            first.values[name] - second.values[name], first.drawn[name] - second.drawn[name]
        )
        for name in first.values
    }


def _difference(value: float, drawn_S: np.ndarray) -> Difference:
    known_S = drawn_S[~np.isnan(drawn_S)]
    if np.isnan(value) or not len(known_S):
        return Difference(float("nan"), float("nan"), float("nan"), float("nan"))
    error_S = known_S - known_S.mean()
    low, high = value + np.percentile(error_S, [2.5, 97.5])
    # Rounding of sums must not tell apart what is equal.
    as_far = np.abs(error_S) >= abs(value) - 1e-12
    return Difference(
        value, float(low), float(high), float((1 + as_far.sum()) / (1 + len(error_S)))
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p-values of several comparisons so that all of them hold at once.

    The step-down method of Holm (1979): the chance of a single false one among those with an
    adjusted value below .05 is below .05. NaN stays NaN and counts for no comparison.
    """
    known = sorted((p, name) for name, p in p_values.items() if not np.isnan(p))
    adjusted: dict[str, float] = dict.fromkeys(p_values, float("nan"))
    largest = 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[name] = largest
    return adjusted
