from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ao.answer import Answer
from grpo_ao.probe import Positions, Probe
from grpo_ao.reward import (
    calibrated_reward,
    calibration_term,
    reward_rule,
    rewarded,
    unparsed_floor,
)

PROBE = Probe("It is ten to twelve.", "Is it late?", "closed", (18,), Positions(20), "Yes", "time")


@pytest.mark.parametrize(
    ("informativeness", "confidence", "reward"),
    [(0.9, 0.9, 0.9), (0.2, 0.9, -0.045), (0.2, 1, -0.12), (1.0, 0, 0.5), (0.0, 1, -0.5)],
)
def test_rows_of_the_reward_by_hand(informativeness, confidence, reward):
    assert calibrated_reward(confidence, informativeness, 0.5) == pytest.approx(reward)


def test_lambda_0_is_informativeness_alone():
    assert calibrated_reward(1.0, 0.25, 0.0) == 0.25


def test_an_overconfident_and_an_underconfident_error_cost_the_same():
    assert calibration_term(0.9, 0.5, 2.0) == pytest.approx(-0.32)
    assert calibration_term(0.1, 0.5, 2.0) == pytest.approx(-0.32)


@pytest.mark.parametrize("calibration_lambda", [-0.1, -1e-9, float("nan")])
def test_a_lambda_below_0_is_refused_wherever_it_enters(calibration_lambda):
    with pytest.raises(ValueError, match="lambda must be 0 or more"):
        calibrated_reward(0.5, 0.5, calibration_lambda)
    with pytest.raises(ValueError, match="lambda must be 0 or more"):
        unparsed_floor(calibration_lambda)


lambdas = st.floats(0, 1e3)
scores = st.floats(0, 1)
confidences = st.floats(0, 1)


@given(confidences, scores, lambdas)
def test_every_parsed_reward_lies_above_the_floor(confidence, informativeness, calibration_lambda):
    reward = calibrated_reward(confidence, informativeness, calibration_lambda)
    assert -calibration_lambda <= reward <= 1
    assert unparsed_floor(calibration_lambda) < reward


@given(confidences, scores, st.floats(1e-3, 1e3))
def test_the_confidence_nearest_to_the_informativeness_gets_most(
    confidence, informativeness, calibration_lambda
):
    best = calibrated_reward(informativeness, informativeness, calibration_lambda)
    assert calibrated_reward(confidence, informativeness, calibration_lambda) <= best + 1e-9


@given(confidences, scores, scores, st.floats(0, 0.5))
def test_up_to_lambda_one_half_a_better_answer_never_loses_reward(
    confidence, one, other, calibration_lambda
):
    worse, better = sorted((one, other))
    low = calibrated_reward(confidence, worse, calibration_lambda)
    assert low <= calibrated_reward(confidence, better, calibration_lambda) + 1e-12


def answer(completion, informativeness=None):
    read = Answer.read(PROBE, completion)
    return rewarded(replace(read, informativeness=informativeness), reward_rule(0.5))


def test_terms_of_a_graded_answer_add_up():
    graded = answer("[epistemic status: 90] Yes", 0.2)
    assert graded.calibration == pytest.approx(-0.245)
    assert graded.reward == pytest.approx(-0.045)


def test_an_answer_without_a_grade_has_no_reward():
    ungraded = answer("[epistemic status: 90] Yes")
    assert (ungraded.calibration, ungraded.reward) == (None, None)


@pytest.mark.parametrize("informativeness", [None, 1.0])
def test_an_unparsed_answer_gets_the_floor_whatever_its_grade(informativeness):
    unparsed = answer("Yes", informativeness)
    assert (unparsed.calibration, unparsed.reward) == (None, -1.5)
