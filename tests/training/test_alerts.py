import math

import pytest

from grpo_ao.training.alerts import check_alerts, greedy_collapse

NAN = math.nan
# A step of a healthy run.
HEALTHY = {
    "confidence_std": 0.25,
    "advantage_std": 0.1,
    "parse_rate": 1.0,
    "unscored": 0.0,
    "answer_length": 10.0,
    "kl": 0.02,
}
NAMES = {
    "confidence_collapse",
    "no_advantage",
    "parse_rate",
    "unscored",
    "sampling_gap",
    "short_answers",
    "kl_explodes",
}


def run(steps=1, **metrics):
    return [HEALTHY | metrics for _ in range(steps)]


def names(history):
    return [alert.name for alert in check_alerts(history)]


# Each alert with one history that raises it and one, as near as can be, that does not.
CASES = {
    "confidence_collapse": (run(10, confidence_std=0.099), run(10, confidence_std=0.1)),
    "no_advantage": (run(advantage_std=0.9e-4), run(advantage_std=1e-4)),
    "parse_rate": (run(parse_rate=0.89), run(parse_rate=0.9)),
    "unscored": (run(unscored=0.21), run(unscored=0.2)),
    "sampling_gap": (run(sampling_gap=0.21), run(sampling_gap=0.2)),
    "short_answers": (
        [*run(10), *run(10, answer_length=5.9)],
        [*run(10), *run(10, answer_length=6.0)],
    ),
    "kl_explodes": (
        [*run(10, kl=0.05), *run(kl=0.51)],
        [*run(10, kl=0.05), *run(kl=0.5)],
    ),
}


def test_there_is_a_case_for_each_alert():
    assert CASES.keys() == NAMES


@pytest.mark.parametrize("name", CASES)
def test_an_alert_is_raised_beyond_its_limit_alone(name):
    fires, silent = CASES[name]
    assert names(fires) == [name]
    assert names(silent) == []


@pytest.mark.parametrize("name", CASES)
def test_an_alert_says_what_was_seen_and_what_to_do(name):
    (alert,) = check_alerts(CASES[name][0])
    assert any(character.isdigit() for character in alert.message)
    assert alert.what_to_do
    assert not alert.message.endswith(".") and not alert.what_to_do.endswith(".")


def test_one_step_of_like_confidences_is_no_collapse():
    assert names([*run(9), *run(confidence_std=0.0)]) == []
    assert names(run(9, confidence_std=0.0)) == []


def test_values_and_limits_are_in_the_message():
    (alert,) = check_alerts(run(10, confidence_std=0.0123))
    assert alert.message == "confidences are all alike: confidence_std is 0.0123, below 0.1"
    (alert,) = check_alerts(run(unscored=0.5))
    assert alert.message == ("the judge left many completions ungraded: unscored is 0.5, above 0.2")


def test_a_healthy_run_and_an_empty_one_raise_nothing():
    assert names(run(50)) == []
    assert names([]) == []
    assert names([{}]) == []


def test_only_the_last_step_counts_for_the_limits():
    assert names([*run(3, parse_rate=0.0), *run()]) == []


def test_several_alerts_are_raised_together():
    found = names(run(10, confidence_std=0.0, advantage_std=0.0, parse_rate=0.0, unscored=1.0))
    assert found == ["confidence_collapse", "no_advantage", "parse_rate", "unscored"]


@pytest.mark.parametrize("value", [None, NAN])
def test_values_that_are_not_known_raise_nothing(value):
    unknown = dict.fromkeys(HEALTHY, value)
    assert names([unknown]) == []
    assert names([*run(20), *[unknown] * 20]) == []
    assert names([unknown] * 40) == []


@pytest.mark.parametrize("value", [None, NAN])
def test_unknown_lengths_are_left_out_of_the_means(value):
    unknown = run(4, answer_length=value)
    assert names([*run(10), *unknown, *run(10, answer_length=7.0)]) == []
    assert names([*run(10), *unknown, *run(10, answer_length=5.0)]) == ["short_answers"]
    # Twenty steps, but too few known ones.
    assert names([*run(10), *unknown, *run(9, answer_length=5.0)]) == []


def test_short_answers_compare_the_first_ten_steps_with_the_last_ten():
    assert names([*run(10), *run(9, answer_length=1.0)]) == []
    dip = [*run(10), *run(20, answer_length=1.0), *run(10)]
    assert names(dip) == []
    grown = [*run(10), *run(10, answer_length=50.0), *run(10, answer_length=5.0)]
    assert names(grown) == ["short_answers"]


def test_kl_is_compared_with_the_median_of_the_ten_steps_before():
    # Above ten times the mean, not above ten times the median, and the other way round.
    assert names([*run(4, kl=0.0), *run(6, kl=0.1), *run(kl=0.9)]) == []
    assert names([*run(6, kl=0.01), *run(4, kl=5.0), *run(kl=0.9)]) == ["kl_explodes"]
    assert names([*run(9, kl=0.01), *run(kl=0.9)]) == []


def test_small_kl_may_grow_tenfold_and_large_kl_may_stay():
    assert names([*run(10, kl=0.001), *run(kl=0.4)]) == []
    assert names([*run(10, kl=2.0), *run(kl=3.0)]) == []


@pytest.mark.parametrize("value", [None, NAN])
def test_an_explosion_is_not_told_again_by_a_step_without_kl(value):
    history = [*run(10), *run(kl=9.0)]
    assert names(history) == ["kl_explodes"]
    assert names([*history, *run(kl=value)]) == []
    # And unknown values between are in no median.
    assert names([*run(5), *run(5, kl=value), *run(5), *run(kl=9.0)]) == ["kl_explodes"]


def test_infinite_kl_explodes():
    assert names([*run(10), *run(kl=math.inf)]) == ["kl_explodes"]


def test_greedy_numbers_that_are_all_alike_are_an_alert():
    found = greedy_collapse([0.8, 0.8, 0.84])
    assert found is not None
    assert (found.name, "0.0189" in found.message) == ("greedy_collapse", True)
    assert greedy_collapse([0.7, 0.9]) is None
    assert greedy_collapse([0.8]) is None
