import asyncio
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import is_async_callable

from grpo_ao.epistemic import parse_oracle_output, render_oracle_output
from grpo_ao.judges.protocol import Grade, GradeRequest
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.probe import Positions, Probe
from grpo_ao.reward import (
    CalibratedReward,
    RewardTerms,
    calibrated_reward,
    calibration_term,
    reward_terms,
    score_completions,
    unparsed_floor,
)

LAST = Positions.parse("last:20")


def probe(question="Is it late?", reference: str | None = "Yes", text="It is ten to twelve."):
    return Probe(text, question, "closed", 18, LAST, reference, "time")


class RecordingJudge:
    """Gives the scores that it was made with, and keeps all requests."""

    def __init__(self, *scores):
        self.scores = list(scores)
        self.requests: list[GradeRequest] = []

    async def grade(self, requests):
        self.requests += requests
        return [Grade(self.scores.pop(0)) for _ in requests]


def score(judge, probes, completions, calibration_lambda=0.5):
    return asyncio.run(score_completions(judge, probes, completions, calibration_lambda))


@pytest.mark.parametrize(
    ("informativeness", "confidence", "reward"),
    [(0.9, 90, 0.9), (0.2, 90, -0.045), (0.2, 100, -0.12), (1.0, 0, 0.5), (0.0, 100, -0.5)],
)
def test_rows_of_the_reward_by_hand(informativeness, confidence, reward):
    assert calibrated_reward(confidence, informativeness, 0.5) == pytest.approx(reward)


def test_lambda_0_is_informativeness_alone():
    assert calibrated_reward(100, 0.25, 0.0) == 0.25


def test_an_overconfident_and_an_underconfident_error_cost_the_same():
    assert calibration_term(90, 0.5, 2.0) == pytest.approx(-0.32)
    assert calibration_term(10, 0.5, 2.0) == pytest.approx(-0.32)


@pytest.mark.parametrize("calibration_lambda", [-0.1, -1e-9, float("nan")])
def test_a_lambda_below_0_is_refused_wherever_it_enters(calibration_lambda):
    with pytest.raises(ValueError, match="lambda must be 0 or more"):
        calibrated_reward(50, 0.5, calibration_lambda)
    with pytest.raises(ValueError, match="lambda must be 0 or more"):
        unparsed_floor(calibration_lambda)
    with pytest.raises(ValueError, match="lambda must be 0 or more"):
        CalibratedReward(RecordingJudge(), {}, calibration_lambda)


lambdas = st.floats(0, 1e3)
scores = st.floats(0, 1)
confidences = st.integers(0, 100)


@given(confidences, scores, lambdas)
def test_every_parsed_reward_lies_above_the_floor(confidence, informativeness, calibration_lambda):
    reward = calibrated_reward(confidence, informativeness, calibration_lambda)
    assert -calibration_lambda <= reward <= 1
    assert unparsed_floor(calibration_lambda) < reward


@given(confidences, scores, st.floats(1e-3, 1e3))
def test_the_confidence_nearest_to_the_informativeness_gets_most(
    confidence, informativeness, calibration_lambda
):
    best = calibrated_reward(round(100 * informativeness), informativeness, calibration_lambda)
    assert calibrated_reward(confidence, informativeness, calibration_lambda) <= best + 1e-9


@given(confidences, scores, scores, st.floats(0, 0.5))
def test_up_to_lambda_one_half_a_better_answer_never_loses_reward(
    confidence, one, other, calibration_lambda
):
    worse, better = sorted((one, other))
    low = calibrated_reward(confidence, worse, calibration_lambda)
    assert low <= calibrated_reward(confidence, better, calibration_lambda) + 1e-12


def test_terms_of_a_graded_output_add_up():
    terms = reward_terms(parse_oracle_output("[epistemic status: 90] Yes"), 0.2, 0.5)
    assert terms.informativeness == 0.2
    assert terms.calibration == pytest.approx(-0.245)
    assert terms.total == pytest.approx(-0.045)


def test_an_output_without_a_grade_has_no_reward():
    terms = reward_terms(parse_oracle_output("[epistemic status: 90] Yes"), None, 0.5)
    assert terms == RewardTerms(None, None, None)


def test_an_unparsed_output_gets_the_floor_whatever_its_grade():
    output = parse_oracle_output("Yes")
    assert reward_terms(output, 1.0, 0.5) == RewardTerms(None, None, -1.5)
    assert reward_terms(output, None, 0.5) == RewardTerms(None, None, -1.5)


def test_the_judge_sees_text_question_answer_kind_and_reference_and_no_more():
    judge = RecordingJudge(1.0)
    score(judge, [probe()], ["[epistemic status: 85] Yes, late."])
    request = GradeRequest("It is ten to twelve.", "Is it late?", "Yes, late.", "closed", "Yes")
    assert judge.requests == [request]
    names = {field.name for field in fields(GradeRequest)}
    assert names == {"text", "question", "answer", "kind", "reference"}


answers = st.text(min_size=1).filter(lambda text: text.strip() and "[" not in text)


@given(confidences, confidences, answers)
def test_the_request_is_the_same_at_every_confidence(one, other, answer):
    judge = RecordingJudge(1.0, 1.0)
    completions = [render_oracle_output(confidence, answer) for confidence in (one, other)]
    score(judge, [probe(), probe()], completions)
    assert judge.requests[0] == judge.requests[1]
    assert "epistemic status" not in repr(judge.requests[0])


def test_only_parsed_completions_are_judged_and_each_gets_its_own_grade():
    judge = RecordingJudge(0.9, None, 0.2)
    completions = [
        "[epistemic status: 90] first",
        "no tag",
        "[epistemic status: 90] second",
        "[epistemic status: 100] third",
    ]
    scored = score(judge, [probe(f"Question {i}?") for i in range(4)], completions)
    assert [request.answer for request in judge.requests] == ["first", "second", "third"]
    assert [request.question for request in judge.requests] == [
        "Question 0?",
        "Question 2?",
        "Question 3?",
    ]
    assert [row.probe.question for row in scored] == [f"Question {i}?" for i in range(4)]
    assert [row.completion for row in scored] == completions
    assert [row.grade for row in scored] == [Grade(0.9), None, Grade(None), Grade(0.2)]
    totals = [row.terms.total for row in scored]
    assert totals == [pytest.approx(0.9), -1.5, None, pytest.approx(-0.12)]


def test_a_probe_without_a_completion_is_refused():
    with pytest.raises(ValueError, match=r"zip\(\)"):
        score(RecordingJudge(1.0), [probe(), probe()], ["[epistemic status: 5] Yes"])


class ShortJudge:
    """Grades fewer answers than it was asked."""

    async def grade(self, requests):
        return [Grade(1.0)] * (len(requests) - 1)


def test_a_judge_that_leaves_requests_out_is_refused():
    with pytest.raises(ValueError, match=r"zip\(\)"):
        score(ShortJudge(), [probe(), probe()], ["[epistemic status: 5] Yes"] * 2)


def call(reward, completions, probe_ids):
    return asyncio.run(
        reward(prompts=["p"] * len(completions), completions=completions, probe_id=probe_ids, G=8)
    )


def test_trl_takes_the_reward_for_an_async_function_with_a_name():
    reward = CalibratedReward(RecordingJudge(), {}, 0.5)
    assert is_async_callable(reward)
    assert reward.__name__ == "calibrated_reward"


def test_rewards_come_in_the_order_of_the_completions_by_probe_id():
    late, early = probe("Is it late?", "Yes"), probe("Is it early?", "No")
    reward = CalibratedReward(ReferenceJudge(), {p.id: p for p in (late, early)}, 0.5)
    completions = [
        "[epistemic status: 100] Yes",
        "[epistemic status: 100] Yes",
        "Yes",
        "[epistemic status: 0] No",
    ]
    assert call(reward, completions, [late.id, early.id, late.id, early.id]) == [
        1.0,
        -0.5,
        -1.5,
        0.5,
    ]
    assert [row.completion for row in reward.last] == completions
    assert [row.probe for row in reward.last] == [late, early, late, early]


def test_a_missing_grade_stays_none_in_its_place():
    known, unknown = probe("Is it late?"), probe("What is it?", None)
    reward = CalibratedReward(ReferenceJudge(), {p.id: p for p in (known, unknown)}, 0.5)
    found = call(reward, ["[epistemic status: 100] Yes"] * 3, [unknown.id, known.id, unknown.id])
    assert found == [None, 1.0, None]


def test_completions_of_conversations_are_read_from_the_last_message():
    asked = probe()
    reward = CalibratedReward(ReferenceJudge(), {asked.id: asked}, 0.5)
    messages = [{"role": "assistant", "content": "[epistemic status: 100] Yes"}]
    assert call(reward, [messages], [asked.id]) == [1.0]


def test_the_details_are_of_the_last_batch_alone():
    asked = probe()
    reward = CalibratedReward(ReferenceJudge(), {asked.id: asked}, 0.5)
    call(reward, ["[epistemic status: 100] Yes"] * 2, [asked.id] * 2)
    call(reward, ["No tag"], [asked.id])
    assert [row.completion for row in reward.last] == ["No tag"]


class SlowJudge:
    """Grades a Yes as right, once it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.batches = 0

    async def grade(self, requests):
        self.batches += 1
        await self.may.wait()
        return [Grade(float(request.answer == "Yes")) for request in requests]


def begun_and_asked(ahead, begun_with, asked_for):
    """Begin with some completions, ask for the rewards of others; return them and the judge."""
    known, judge = probe(), SlowJudge()
    reward = CalibratedReward(judge, {known.id: known}, 0.5, ahead)

    async def both():
        loop = asyncio.get_running_loop()
        reward.begin(loop, [known.id] * len(begun_with), begun_with)
        asyncio.get_running_loop().call_later(0.02, judge.may.set)
        ids = [known.id] * len(asked_for)
        return await reward(prompts=["p"] * len(ids), completions=asked_for, probe_id=ids)

    return asyncio.run(both()), judge, reward


@pytest.mark.parametrize("ahead", [True, False])
def test_what_was_begun_is_graded_once_and_waited_for(ahead):
    completions = ["[epistemic status: 100] Yes", "[epistemic status: 100] No"]
    rewards, judge, reward = begun_and_asked(ahead, completions, completions)
    assert rewards == [1.0, -0.5]
    assert judge.batches == 1
    assert [row.completion for row in reward.last] == completions
    assert reward.seconds_waited > 0.01


def test_rewards_of_other_completions_than_were_begun_are_refused():
    with pytest.raises(RuntimeError, match="other completions"):
        begun_and_asked(True, ["[epistemic status: 1] Yes"], ["[epistemic status: 2] Yes"])
