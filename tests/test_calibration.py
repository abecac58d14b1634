import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from grpo_ao.calibration import (
    adaptive_ece,
    auroc,
    bin_gaps,
    bootstrap_interval,
    brier,
    calibration_summary,
    ece,
    equal_mass_bins,
    equal_width_bins,
    isotonic_brier,
    mce,
)

pytestmark = pytest.mark.filterwarnings("error")

METRICS = {
    "ece": ece,
    "adaptive_ece": adaptive_ece,
    "mce": lambda confidence, outcome: mce(confidence, outcome, min_count=1),
    "brier": brier,
    "isotonic_brier": isotonic_brier,
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def floats(*values):
    return np.array(values, dtype=float)


# Confidences as the tag states them, outcomes closed or graded.
pairs = st.lists(
    st.tuples(st.integers(0, 100), st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1, max_size=60
)


def columns(items):
    return floats(*[c / 100 for c, _ in items]), floats(*[o for _, o in items])


# Six answers at two levels: four at .95, three right; two at .15, one right.
CONFIDENCE = floats(0.95, 0.15, 0.95, 0.95, 0.15, 0.95)
OUTCOME = floats(1, 1, 1, 0, 0, 1)


@pytest.mark.parametrize("bins", [5, 10, 20, 50, 100])
def test_a_stated_confidence_at_a_bins_edge_lies_in_the_bin_above(bins):
    # In floats .29 * 100 is below 29.
    expected = [min(c * bins // 100, bins - 1) for c in range(101)]
    assert equal_width_bins(np.arange(101) / 100, bins).tolist() == expected


def test_bins_of_equal_mass_by_hand():
    assert equal_mass_bins(floats(0.9, 0.1, 0.2, 0.3), 2).tolist() == [1, 0, 0, 1]
    assert equal_mass_bins(floats(0.1, 0.2, 0.3, 0.4), 4).tolist() == [0, 1, 2, 3]
    assert equal_mass_bins(floats(), 4).tolist() == []


def test_equal_confidences_share_a_bin_of_equal_mass():
    assert equal_mass_bins(floats(0.5, 0.5, 0.9, 0.5), 2).tolist() == [0, 0, 1, 0]


def test_gaps_are_of_the_bins_that_hold_something():
    gaps, counts = bin_gaps(CONFIDENCE, OUTCOME, equal_width_bins(CONFIDENCE, 10))
    assert gaps.tolist() == pytest.approx([0.35, 0.2])
    assert counts.tolist() == [2, 4]


def test_ece_by_hand():
    # (2 * |.15 - .5| + 4 * |.95 - .75|) / 6
    assert ece(CONFIDENCE, OUTCOME) == pytest.approx(0.25)


def test_errors_of_one_bin_cancel_and_those_of_two_do_not():
    confidence, outcome = floats(0.42, 0.48), floats(0.52, 0.38)
    assert ece(confidence, outcome) == pytest.approx(0.0)
    assert ece(confidence, outcome, bins=20) == pytest.approx(0.1)


def test_adaptive_ece_by_hand():
    confidence, outcome = floats(0.1, 0.2, 0.3, 0.9), floats(0, 1, 0, 1)
    # (|.15 - .5| + |.6 - .5|) / 2, where bins of equal width give (.1 + .8 + .3 + .1) / 4.
    assert adaptive_ece(confidence, outcome, bins=2) == pytest.approx(0.225)
    assert ece(confidence, outcome) == pytest.approx(0.325)


def test_mce_is_the_largest_gap_of_a_bin_with_enough_items():
    assert mce(CONFIDENCE, OUTCOME, min_count=2) == pytest.approx(0.35)
    assert mce(CONFIDENCE, OUTCOME, min_count=3) == pytest.approx(0.2)
    assert math.isnan(mce(CONFIDENCE, OUTCOME, min_count=5))
    assert math.isnan(mce(CONFIDENCE, OUTCOME))  # 20 without a word


def test_brier_by_hand():
    assert brier(floats(0.8, 0.3), floats(1.0, 0.5)) == pytest.approx(0.04)
    assert brier(floats(1.0, 0.0), floats(0.0, 1.0)) == 1.0


def test_isotonic_brier_by_hand():
    # The best monotone map of these is 0, .5, .5, 1.
    confidence, outcome = floats(0.1, 0.2, 0.3, 0.4), floats(0, 1, 0, 1)
    assert isotonic_brier(confidence, outcome) == pytest.approx(0.125)


@given(pairs)
def test_monotone_recalibration_never_makes_brier_worse(items):
    confidence, outcome = columns(items)
    assert isotonic_brier(confidence, outcome) <= brier(confidence, outcome) + 1e-9


@given(pairs)
def test_bounds_of_the_errors(items):
    confidence, outcome = columns(items)
    error = ece(confidence, outcome)
    assert abs(confidence.mean() - outcome.mean()) <= error + 1e-9
    assert error <= mce(confidence, outcome, min_count=1) + 1e-9
    assert error <= math.sqrt(brier(confidence, outcome)) + 1e-9
    assert 0 <= adaptive_ece(confidence, outcome) <= math.sqrt(brier(confidence, outcome)) + 1e-9


@every_metric
@given(pairs, st.randoms())
def test_the_order_of_items_does_not_matter(metric, items, random):
    shuffled = random.sample(items, len(items))
    assert metric(*columns(shuffled)) == pytest.approx(metric(*columns(items)))


@every_metric
@given(pairs, st.integers(2, 4))
def test_items_counted_several_times_change_nothing(metric, items, times):
    assert metric(*columns(items * times)) == pytest.approx(metric(*columns(items)))


@every_metric
def test_a_perfect_forecaster_has_no_error(metric):
    outcome = floats(0, 1, 1, 0, 1)
    assert metric(outcome, outcome) == 0.0


def test_a_calibrated_forecaster_has_brier_but_no_ece():
    confidence, outcome = floats(*[0.8] * 5, *[0.2] * 5), floats(1, 1, 1, 1, 0, 0, 0, 0, 0, 1)
    assert ece(confidence, outcome) == pytest.approx(0.0)
    assert adaptive_ece(confidence, outcome) == pytest.approx(0.0)
    assert brier(confidence, outcome) == pytest.approx(0.16)
    assert isotonic_brier(confidence, outcome) == pytest.approx(0.16)


def test_a_constant_forecaster_at_the_base_rate_looks_calibrated_and_knows_nothing():
    confidence, outcome = np.full(4, 0.75), floats(1, 1, 0, 1)
    assert ece(confidence, outcome) == pytest.approx(0.0)
    assert brier(confidence, outcome) == pytest.approx(0.1875)
    assert auroc(confidence, outcome == 1) == 0.5


def test_a_constant_forecaster_off_the_base_rate_is_off_by_the_difference():
    confidence, outcome = np.full(4, 0.9), floats(0, 1, 0, 0)
    assert ece(confidence, outcome) == pytest.approx(0.65)
    assert adaptive_ece(confidence, outcome) == pytest.approx(0.65)
    assert isotonic_brier(confidence, outcome) == pytest.approx(0.1875)


def test_auroc_by_hand():
    # Pairs right/wrong: (.9, .5) and (.9, .2) and (.5, .2) ordered, (.5, .5) tied: 3.5 of 4.
    confidence, right = floats(0.9, 0.5, 0.5, 0.2), np.array([True, True, False, False])
    assert auroc(confidence, right) == 0.875


@given(pairs)
def test_auroc_is_sklearns_and_turns_round_with_the_confidence(items):
    confidence, outcome = columns(items)
    right = outcome >= 0.5
    if right.all() or not right.any():
        assert math.isnan(auroc(confidence, right))
        return
    assert auroc(confidence, right) == pytest.approx(roc_auc_score(right, confidence))
    assert auroc(1 - confidence, right) == pytest.approx(1 - auroc(confidence, right))


@every_metric
def test_no_items_give_nan(metric):
    assert math.isnan(metric(floats(), floats()))


def test_auroc_of_no_items_is_nan():
    assert math.isnan(auroc(floats(), np.array([], dtype=bool)))


# Intervals


def test_whole_clusters_are_drawn():
    cluster = np.array(["b", "a", "b", "c", "a", "b"])
    draws = []
    bootstrap_interval(lambda index: draws.append(index) or 0.0, cluster, draws=50)
    assert len(draws) == 50
    for index in draws:
        counts = np.bincount(index, minlength=6)
        assert counts[0] == counts[2] == counts[5]
        assert counts[1] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3
    assert len({tuple(sorted(index)) for index in draws}) > 5


def test_two_clusters_of_0_and_1_are_certain_of_nothing():
    value, cluster = floats(0, 0, 0, 1, 1, 1), np.array([7, 7, 7, 3, 3, 3])
    # The means of two drawn clusters are 0, 1/2 and 1, one time, two times, one time in four.
    assert bootstrap_interval(lambda index: float(value[index].mean()), cluster) == (0.0, 1.0)


def test_one_cluster_has_no_width():
    value = floats(0, 1, 1, 1)
    interval = bootstrap_interval(lambda index: float(value[index].mean()), np.zeros(4))
    assert interval == (0.75, 0.75)


def test_items_of_their_own_give_the_normal_interval():
    value = np.tile(floats(0, 1), 200)
    low, high = bootstrap_interval(lambda index: float(value[index].mean()), np.arange(400))
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=0.01)
    assert high == pytest.approx(0.5 + 1.96 * 0.5 / 20, abs=0.01)


def test_repeated_questions_do_not_narrow_the_interval():
    value = np.tile(floats(0, 1), 20)
    alone = bootstrap_interval(lambda index: float(value[index].mean()), np.arange(40))
    tenfold = np.repeat(value, 10)
    clusters = np.repeat(np.arange(40), 10)
    together = bootstrap_interval(lambda index: float(tenfold[index].mean()), clusters)
    assert together == pytest.approx(alone)


def test_a_seed_repeats_the_interval_and_another_one_does_not():
    value, cluster = np.random.default_rng(5).random(30), np.arange(30)
    mean = lambda index: float(value[index].mean())  # noqa: E731
    assert bootstrap_interval(mean, cluster) == bootstrap_interval(mean, cluster, seed=0)
    assert bootstrap_interval(mean, cluster) != bootstrap_interval(mean, cluster, seed=1)


def test_draws_without_a_value_are_left_out():
    def never_even(index):
        return 1.0 if index[0] else float("nan")

    assert bootstrap_interval(never_even, np.arange(3)) == (1.0, 1.0)
    low, high = bootstrap_interval(lambda _: float("nan"), np.arange(3))
    assert math.isnan(low) and math.isnan(high)


def test_an_interval_of_no_items_is_nan():
    empty = floats()
    low, high = bootstrap_interval(lambda index: brier(empty[index], empty[index]), np.arange(0))
    assert math.isnan(low) and math.isnan(high)


# Summary


def test_a_summary_by_hand_with_an_unparsed_output():
    summary = calibration_summary(
        floats(0.9, 0.5, 0.1, 0.5, 0.3),
        floats(1.0, 0.6, 0.0, 0.0, 0.2),
        np.array([True, True, True, False, True]),
    )
    assert summary == {
        "n": 5,
        "informativeness": pytest.approx(0.36),
        "ece10": pytest.approx(0.1),
        "auroc": 1.0,
        "brier": pytest.approx(0.01),
        "brier_isotonic": pytest.approx(0.0),
        "confidence_mean": pytest.approx(0.45),
        "confidence_std": pytest.approx(math.sqrt(0.0875)),
        "parse_rate": 0.8,
    }


@given(pairs, st.integers(0, 100), st.sampled_from([0.0, 1.0, float("nan")]))
def test_an_unparsed_output_enters_no_metric_of_confidence(items, confidence, grade):
    stated, outcome = columns(items)
    alone = calibration_summary(stated, outcome, np.ones(len(items), dtype=bool))
    more = calibration_summary(
        np.append(stated, confidence / 100),
        np.append(outcome, grade),
        np.append(np.ones(len(items), dtype=bool), False),
    )
    share = len(items) / (len(items) + 1)
    assert more["parse_rate"] == pytest.approx(share)
    assert more["informativeness"] == pytest.approx(share * alone["informativeness"])
    for name in alone.keys() - {"n", "parse_rate", "informativeness"}:
        assert more[name] == pytest.approx(alone[name], nan_ok=True)


def test_nothing_parsed_is_informativeness_0_and_no_calibration():
    summary = calibration_summary(floats(0.5, 0.5), floats(0, 0), np.array([False, False]))
    assert (summary["n"], summary["informativeness"], summary["parse_rate"]) == (2, 0.0, 0.0)
    others = summary.keys() - {"n", "informativeness", "parse_rate"}
    assert all(math.isnan(summary[name]) for name in others)


def test_a_summary_of_nothing_is_nan():
    summary = calibration_summary(floats(), floats(), np.array([], dtype=bool))
    assert summary.pop("n") == 0
    assert all(math.isnan(value) for value in summary.values())
