import math

import numpy as np
import pytest
import relplot
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from grpo_ao.calibration import (
    adaptive_ece,
    aurc,
    auroc,
    bin_gaps,
    bootstrap_interval,
    bootstrap_intervals,
    brier,
    brier_of_all,
    brier_parts,
    calibration_error,
    ece,
    equal_mass_bins,
    equal_width_bins,
    fit_isotonic,
    fit_temperature,
    isotonic_brier,
    mce,
    nll,
    out_of_fold,
    perfect_ece_interval,
    risk_coverage,
    smooth_ece,
)

pytestmark = pytest.mark.filterwarnings("error")

METRICS = {
    "ece": ece,
    "adaptive_ece": adaptive_ece,
    "mce": lambda confidence, outcome: mce(confidence, outcome, min_count=1),
    "brier": brier,
    "isotonic_brier": isotonic_brier,
    "brier_reliability": lambda confidence, outcome: brier_parts(confidence, outcome).reliability,
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


def test_an_output_without_a_number_counts_as_one_half_on_a_wrong_answer():
    confidence, outcome = floats(0.8, 0.9, 0.0), floats(1.0, 1.0, 0.0)
    parsed = np.array([True, False, False])
    assert brier_of_all(confidence, outcome, parsed) == pytest.approx((0.04 + 0.25 + 0.25) / 3)
    assert brier_of_all(confidence, outcome, ~parsed) == pytest.approx((0.25 + 0.01) / 3)
    assert math.isnan(brier_of_all(floats(), floats(), np.array([], dtype=bool)))


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
    reliability, resolution, uncertainty = brier_parts(confidence, outcome)
    assert (reliability, resolution, uncertainty) == pytest.approx((0.0, 0.09, 0.25))


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


# Parts of Brier, likelihood, smooth ECE, calibration error, risk and coverage


def closed(items):
    confidence, outcome = columns(items)
    return confidence, (outcome >= 0.5).astype(float)


@given(pairs)
def test_brier_is_reliability_less_resolution_plus_uncertainty(items):
    confidence, outcome = columns(items)
    reliability, resolution, uncertainty = brier_parts(confidence, outcome)
    assert reliability - resolution + uncertainty == pytest.approx(brier(confidence, outcome))
    assert min(reliability, resolution, uncertainty) >= -1e-12
    assert uncertainty == pytest.approx(brier(np.full(len(items), outcome.mean()), outcome))


def test_brier_parts_by_hand():
    # Recalibrated to 1/2 and 3/4; the base rate is 4/6.
    reliability, resolution, uncertainty = brier_parts(CONFIDENCE, OUTCOME)
    assert reliability == pytest.approx((4 * 0.2**2 + 2 * 0.35**2) / 6)
    assert resolution == pytest.approx((4 * (1 / 12) ** 2 + 2 * (1 / 6) ** 2) / 6)
    assert uncertainty == pytest.approx(2 / 9)


def test_a_constant_at_the_base_rate_has_uncertainty_alone():
    assert brier_parts(np.full(4, 0.75), floats(1, 1, 0, 1)) == pytest.approx((0, 0, 0.1875))


def test_nll_by_hand():
    expected = -(math.log(0.8) + math.log(0.7)) / 2
    assert nll(floats(0.8, 0.3), floats(1, 0)) == pytest.approx(expected)


def test_a_wrong_answer_at_100_per_cent_costs_what_one_at_99_5_does():
    assert nll(floats(1.0), floats(0)) == pytest.approx(-math.log(0.005))
    assert nll(floats(0.0, 1.0), floats(0, 1)) == pytest.approx(-math.log(0.995))


@given(pairs)
def test_brier_nll_and_the_isotonic_fit_are_sklearns(items):
    confidence, outcome = closed(items)
    cut = np.clip(confidence, 0.005, 0.995)
    assert brier(confidence, outcome) == pytest.approx(brier_score_loss(outcome, confidence))
    assert nll(confidence, outcome) == pytest.approx(log_loss(outcome, cut, labels=[0, 1]))
    fitted = IsotonicRegression().fit_transform(confidence, outcome)
    assert isotonic_brier(confidence, outcome) == pytest.approx(brier_score_loss(outcome, fitted))


def test_ece_is_that_of_sklearns_calibration_curve():
    rng = np.random.default_rng(3)
    confidence = rng.random(400)
    outcome = (rng.random(400) < confidence**2).astype(float)
    right, stated = calibration_curve(outcome, confidence, n_bins=10)
    weights = np.histogram(confidence, 10, (0, 1))[0] / 400
    assert ece(confidence, outcome) == pytest.approx(weights @ np.abs(right - stated))


@settings(max_examples=10)
@given(pairs)
def test_smooth_ece_is_relplots(items):
    confidence, outcome = closed(items)
    assert smooth_ece(confidence, outcome) == relplot.smECE(confidence, outcome)


def test_smooth_ece_of_a_large_gap_is_that_gap():
    confidence, outcome = np.full(200, 0.9), np.zeros(200)
    assert smooth_ece(confidence, outcome) == pytest.approx(0.9, abs=0.02)
    assert smooth_ece(np.full(200, 0.5), np.tile(floats(0, 1), 100)) == pytest.approx(0, abs=0.02)
    assert math.isnan(smooth_ece(floats(), floats()))


def test_the_calibration_error_by_hand():
    # One bin of four texts: errors .25, .25, -.75, -.75. The products of different texts' errors
    # sum to (-1)^2 - 1.25 = -.25, less than nothing: chance alone makes as much.
    confidence, outcome = np.full(4, 0.25), floats(0, 0, 1, 1)
    found = calibration_error(confidence, outcome, np.arange(4))
    assert found.value == 0.0
    assert found.low == 0.0 < found.high
    # All wrong: (4 * .25)^2 - 4 * .25^2 = .75 over 4^2 - 4 pairs is .25 squared, without doubt.
    assert calibration_error(confidence, np.zeros(4), np.arange(4)) == pytest.approx([0.25] * 3)


def test_the_calibration_error_weighs_bins_by_their_items():
    # Bins of equal mass keep equal confidences together: gaps .2 of 4 items and .6 of 12.
    confidence, outcome = floats(*[0.2] * 4, *[0.6] * 12), np.zeros(16)
    expected = math.sqrt((4 * 0.2**2 + 12 * 0.6**2) / 16)
    assert calibration_error(confidence, outcome, np.arange(16)).value == pytest.approx(expected)


def test_repeated_questions_change_the_calibration_error_and_its_interval_by_nothing():
    rng = np.random.default_rng(0)
    confidence = rng.integers(30, 90, 200) / 100
    outcome = (rng.random(200) < confidence - 0.1).astype(float)
    once = calibration_error(confidence, outcome, np.arange(200))
    text = np.arange(200)
    six = calibration_error(np.repeat(confidence, 6), np.repeat(outcome, 6), np.repeat(text, 6))
    assert six == pytest.approx(once)


def test_the_interval_of_the_calibration_error_holds_the_truth():
    rng = np.random.default_rng(0)
    held = {0.0: 0, 0.1: 0}
    for error in held:
        for _ in range(200):
            confidence = rng.integers(20, 95, 250) / 100
            outcome = (rng.random(250) < confidence - error).astype(float)
            _, low, high = calibration_error(confidence, outcome, np.arange(250))
            held[error] += low <= error <= high
    assert all(180 <= count <= 200 for count in held.values())


def test_too_little_for_a_calibration_error_is_nan():
    one_text = calibration_error(floats(0.5, 0.7), floats(1, 0), np.zeros(2))
    for found in (one_text, calibration_error(floats(), floats(), np.arange(0))):
        assert all(math.isnan(value) for value in found)


@given(pairs, st.randoms())
def test_the_calibration_error_does_not_depend_on_order(items, random):
    confidence, outcome = columns(items)
    cluster = np.arange(len(items)) // 2
    order = random.sample(range(len(items)), len(items))
    found = calibration_error(confidence, outcome, cluster)
    shuffled = calibration_error(confidence[order], outcome[order], cluster[order])
    assert shuffled == pytest.approx(found, abs=1e-6, nan_ok=True)
    assert math.isnan(found.value) or 0 <= found.low <= found.value + 1e-6 <= found.high + 2e-6


def perfect(confidence, outcome=None, cluster=None):
    """A perfect forecaster; of closed questions, a text each, if not told otherwise."""
    outcome = (confidence >= 0.5).astype(float) if outcome is None else outcome
    return perfect_ece_interval(
        confidence, outcome, np.arange(len(confidence)) if cluster is None else cluster
    )


def test_a_perfect_forecaster_of_250_items_has_an_ece_of_about_5_per_cent():
    mean, low, high = perfect(np.random.default_rng(1).random(250))
    assert 0.03 < low < 0.045 < mean < 0.065 < high < 0.1


def test_a_perfect_forecaster_who_is_certain_makes_no_error():
    assert perfect(floats(0, 1, 1, 0)) == (0, 0, 0)
    assert all(math.isnan(value) for value in perfect(floats()))


def test_a_perfect_forecaster_by_hand():
    # One item at .5: the outcome is off by .5 whatever it is.
    assert perfect(floats(0.5)) == (0.5, 0.5, 0.5)
    # Two items at .5: both alike (gap .5) or one of each (gap 0); always alike in one cluster.
    mean, low, high = perfect(floats(0.5, 0.5))
    assert (low, high) == (0.0, 0.5)
    assert mean == pytest.approx(0.25, abs=0.03)
    assert perfect(floats(0.5, 0.5), cluster=np.zeros(2)) == (0.5, 0.5, 0.5)


def test_a_question_asked_six_times_makes_a_perfect_forecaster_no_surer():
    confidence = np.random.default_rng(1).random(100)
    six = np.repeat(confidence, 6), np.repeat((confidence > 0.5) * 1.0, 6), np.repeat(range(100), 6)
    assert perfect_ece_interval(*six) == pytest.approx(perfect(confidence))


def test_a_perfect_forecaster_of_grades_has_their_spread_and_the_stated_means():
    rng = np.random.default_rng(0)
    confidence = rng.integers(20, 80, 400) / 100
    closed, _, _ = perfect(confidence)
    near, _, _ = perfect(confidence, np.clip(confidence + rng.normal(0, 0.02, 400), 0, 1))
    # Grades from .2 to .8 scatter less around any mean than 0 and 1 do.
    assert near < 0.6 * closed
    # All are graded .7 where .3 is stated: outcomes are drawn with the mean .3 all the same.
    off, _, _ = perfect(np.full(400, 0.3), np.full(400, 0.7))
    assert off < 0.05


def test_risk_and_coverage_by_hand():
    coverage, risk = risk_coverage(floats(0.2, 0.9, 0.5, 0.7), floats(0, 1, 1, 0))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert aurc(floats(0.2, 0.9, 0.5, 0.7), floats(0, 1, 1, 0)) == pytest.approx(1 / 3)


def test_equal_confidences_share_their_risk():
    _, risk = risk_coverage(np.full(4, 0.5), floats(0, 1, 1, 1))
    assert risk.tolist() == pytest.approx([0.25] * 4)


@given(pairs, st.randoms())
def test_risk_does_not_depend_on_order_and_ends_at_the_error_rate(items, random):
    confidence, outcome = columns(items)
    _, risk = risk_coverage(confidence, outcome)
    assert risk[-1] == pytest.approx(1 - outcome.mean())
    shuffled = random.sample(items, len(items))
    assert aurc(*columns(shuffled)) == pytest.approx(aurc(confidence, outcome))


@given(pairs)
def test_no_order_of_confidence_has_less_area_than_the_outcomes_own(items):
    confidence, outcome = closed(items)
    assert aurc(outcome, outcome) <= aurc(confidence, outcome) + 1e-9


def test_aurc_and_nll_of_nothing_are_nan():
    for metric in (aurc, nll):
        assert math.isnan(metric(floats(), floats()))
    assert all(math.isnan(part) for part in brier_parts(floats(), floats()))


# Recalibration


def test_isotonic_recalibration_learns_on_one_half_and_serves_another():
    confidence, outcome = floats(0.2, 0.2, 0.8, 0.8), floats(0, 1, 1, 1)
    recalibrate = fit_isotonic(confidence, outcome)
    assert recalibrate(floats(0.0, 0.2, 0.5, 0.9)).tolist() == pytest.approx([0.5, 0.5, 0.75, 1])


def test_a_temperature_undoes_overconfidence_and_keeps_the_order():
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 1.5, 20_000)
    outcome = (rng.random(20_000) < 1 / (1 + np.exp(-odds))).astype(float)
    stated = 1 / (1 + np.exp(-2 * odds))
    recalibrated = fit_temperature(stated, outcome)(stated)
    uncut = (stated > 0.005) & (stated < 0.995)
    true = 1 / (1 + np.exp(-odds))
    assert recalibrated[uncut] == pytest.approx(true[uncut], abs=0.02)
    assert auroc(recalibrated, outcome == 1) == pytest.approx(auroc(stated, outcome == 1), abs=1e-3)


def test_each_item_is_predicted_from_the_other_folds_of_its_part():
    part = np.array(["a", "a", "b", "a", "b"])
    fold = np.array([0, 1, 1, 2, 0])
    fitted_on = {}

    def predict(known, asked):
        fitted_on.update({item: known.tolist() for item in asked.tolist()})
        return 10.0 * asked + len(known)

    assert out_of_fold(predict, fold, part).tolist() == [2, 12, 21, 32, 41]
    assert fitted_on == {0: [1, 3], 1: [0, 3], 3: [0, 1], 2: [4], 4: [2]}


def test_what_is_alone_in_its_part_is_predicted_from_nothing():
    found = out_of_fold(lambda known, asked: float(len(known)), np.array([3]), np.array(["a"]))
    assert found.tolist() == [0.0]


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


def test_several_statistics_share_their_draws():
    value = np.random.default_rng(5).random(30)

    def statistics(index):
        mean = float(value[index].mean())
        return {"mean": mean, "double": 2 * mean, "difference": mean - mean}

    intervals = bootstrap_intervals(statistics, np.arange(30))
    alone = bootstrap_interval(lambda index: statistics(index)["mean"], np.arange(30))
    assert intervals["mean"] == alone
    assert intervals["double"] == pytest.approx((2 * alone[0], 2 * alone[1]))
    assert intervals["difference"] == (0, 0)  # paired: what both share cancels in every draw


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
