import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ao.calibration import ece
from grpo_ao.intervals import holm, paired_differences, resampled

pytestmark = pytest.mark.filterwarnings("error")


def mean_of(value_N):
    return lambda index_N: {"mean": float(value_N[index_N].mean())}


def compared(first, second, clusters, draws=1000):
    return paired_differences(*(resampled(of, clusters, draws) for of in (first, second)))


def test_what_two_measurements_share_cancels():
    noise = np.random.default_rng(0).normal(0, 10, 200)
    found = compared(mean_of(noise + 1), mean_of(noise), np.arange(200))["mean"]
    assert found.value == pytest.approx(1.0)
    assert (found.low, found.high) == pytest.approx((1.0, 1.0))
    assert found.p == pytest.approx(1 / 1001)


def test_equal_measurements_do_not_differ():
    value = np.random.default_rng(0).random(50)
    found = compared(mean_of(value), mean_of(value), np.arange(50))["mean"]
    assert found == (0.0, 0.0, 0.0, 1.0)


def test_independent_items_give_the_normal_interval_and_its_p_value():
    # The mean of 400 values of -1 and 1, with .05 added, has a standard deviation of .05.
    value = np.tile([-1.0, 1.0], 200) + 0.05
    found = compared(mean_of(value), mean_of(np.zeros(400)), np.arange(400), draws=4000)
    mean = found["mean"]
    assert (mean.low, mean.high) == pytest.approx((0.05 - 0.098, 0.05 + 0.098), abs=0.01)
    assert mean.p == pytest.approx(0.317, abs=0.04)


def test_clusters_stand_or_fall_together():
    value, clusters = np.repeat([-1.0, 1.0, 1.0, 1.0], 100), np.repeat(np.arange(4), 100)
    apart = compared(mean_of(value), mean_of(np.zeros(400)), np.arange(400))["mean"]
    whole = compared(mean_of(value), mean_of(np.zeros(400)), clusters)["mean"]
    assert apart.low > 0.3 and apart.p < 0.01
    assert whole.low < 0 < whole.high and whole.p > 0.05


def test_the_interval_of_a_difference_of_errors_lies_around_the_difference():
    # A resample's ECE is larger than the sample's, most of all where it is small.
    rng = np.random.default_rng(0)
    calibrated = rng.uniform(0, 0.7, 300)
    right = (rng.random(300) < calibrated).astype(float)
    of = lambda confidence: lambda i: {"ece": ece(confidence[i], right[i])}  # noqa: E731
    found = compared(of(calibrated + 0.3), of(calibrated), np.arange(300))["ece"]
    drawn = [of(calibrated)(rng.integers(300, size=300))["ece"] for _ in range(100)]
    assert np.mean(drawn) - ece(calibrated, right) > 0.015
    assert (found.low + found.high) / 2 == pytest.approx(found.value, abs=0.012)


def test_a_statistic_that_is_unknown_stays_unknown():
    nothing = lambda index_N: {"auroc": float("nan")}  # noqa: E731
    found = compared(nothing, nothing, np.arange(3), draws=20)["auroc"]
    assert all(math.isnan(value) for value in found)


def test_holms_correction_by_hand():
    # Times 4, 3, 2 and 1 in order of size, and never below the one before.
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_a_comparison_that_cannot_be_made_counts_for_none():
    adjusted = holm({"a": 0.02, "b": float("nan"), "c": 0.5})
    assert (adjusted["a"], adjusted["c"]) == pytest.approx((0.04, 0.5))
    assert math.isnan(adjusted["b"])


@given(st.dictionaries(st.integers(0, 9), st.floats(0, 1), min_size=1))
def test_adjusted_p_values_keep_the_order_and_are_no_smaller(p_values):
    p_values = {str(name): p for name, p in p_values.items()}
    adjusted = holm(p_values)
    ordered = sorted(p_values, key=lambda name: p_values[name])
    values = [adjusted[name] for name in ordered]
    assert values == sorted(values)
    assert all(1 >= adjusted[name] >= p for name, p in p_values.items())
    smallest = ordered[0]
    assert adjusted[smallest] == min(1.0, p_values[smallest] * len(p_values))
