"""The reward as TRL calls it, and the limit on what a judge leaves ungraded."""

import asyncio
from itertools import count
from types import SimpleNamespace

import pytest
from trl.trainer.utils import is_async_callable

from grpo_ao.answer import Answer
from grpo_ao.judges.protocol import Grade
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.probe import Positions, Probe
from grpo_ao.reward import reward_rule
from grpo_ao.training.rewarding import CalibratedReward
from tests.judges.fakes import CountingJudge


def probe(question="Is it late?", reference: str | None = "Yes"):
    return Probe(
        "It is ten to twelve.", question, "closed", (18,), Positions(20), reference, "time"
    )


def test_a_negative_lambda_is_refused_before_training():
    with pytest.raises(ValueError, match="lambda must be 0 or more"):
        CalibratedReward(ReferenceJudge(), reward_rule(-0.1))


def test_only_parsed_completions_are_judged_and_each_gets_its_own_grade():
    judge = CountingJudge(unscored=frozenset({"second"}))
    completions = [f"[epistemic status: 90] {word}" for word in ("first", "second")]
    completions.insert(1, "no tag")
    probes = [probe(f"Question {i}?") for i in range(3)]
    reward = CalibratedReward(judge, reward_rule(0.5))
    rewards = call(reward, completions, probes)
    assert [request.answer for request in judge.asked] == ["first", "second"]
    assert [request.question for request in judge.asked] == ["Question 0?", "Question 2?"]
    assert rewards[1:] == [-1.5, None]
    first, unparsed, ungraded = reward.last
    assert rewards[0] == first.reward is not None
    assert (unparsed.informativeness, unparsed.reason) == (None, None)
    assert ungraded.reason == "told to"


def ids_of(completions):
    return [list(completion.encode()) for completion in completions]


def read(probes, completions):
    return [Answer.read(*g) for g in zip(probes, completions, ids_of(completions), strict=True)]


def call(reward, completions, probes):
    async def begin_and_call():
        reward.begin(asyncio.get_running_loop(), read(probes, completions))
        prompts = ["p"] * len(completions)
        return await reward(prompts, completions, completion_ids=ids_of(completions), G=8)

    return asyncio.run(begin_and_call())


def test_trl_takes_the_reward_for_an_async_function_with_a_name():
    reward = CalibratedReward(ReferenceJudge(), reward_rule(0.5))
    assert is_async_callable(reward)
    assert reward.__name__ == "calibrated_reward"


def test_rewards_come_in_the_order_of_the_completions():
    late, early = probe("Is it late?", "Yes"), probe("Is it early?", "No")
    reward = CalibratedReward(ReferenceJudge(), reward_rule(0.5))
    completions = [
        "[epistemic status: 100] Yes",
        "[epistemic status: 100] Yes",
        "Yes",
        "[epistemic status: 0] No",
    ]
    assert call(reward, completions, [late, early, late, early]) == [
        1.0,
        -0.5,
        -1.5,
        0.5,
    ]
    assert [row.completion for row in reward.last] == completions
    assert [row.probe for row in reward.last] == [late, early, late, early]


def test_a_missing_grade_stays_none_in_its_place():
    known, unknown = probe("Is it late?"), probe("What is it?", None)
    reward = CalibratedReward(ReferenceJudge(), reward_rule(0.5))
    found = call(reward, ["[epistemic status: 100] Yes"] * 3, [unknown, known, unknown])
    assert found == [None, 1.0, None]


def test_the_details_are_of_the_last_batch_alone():
    asked = probe()
    reward = CalibratedReward(ReferenceJudge(), reward_rule(0.5))
    call(reward, ["[epistemic status: 100] Yes"] * 2, [asked] * 2)
    call(reward, ["No tag"], [asked])
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
    reward = CalibratedReward(judge, reward_rule(0.5), ahead)

    async def both():
        loop = asyncio.get_running_loop()
        reward.begin(loop, read([known] * len(begun_with), begun_with))
        loop.call_later(0.02, judge.may.set)
        return await reward(["p"] * len(asked_for), asked_for, ids_of(asked_for))

    return asyncio.run(both()), judge, reward


@pytest.mark.parametrize("ahead", [True, False])
def test_what_was_begun_is_graded_once_and_waited_for(ahead, monkeypatch):
    ticks = count()  # each look at the clock is one
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr("grpo_ao.training.rewarding.time", clock)
    completions = ["[epistemic status: 100] Yes", "[epistemic status: 100] No"]
    rewards, judge, reward = begun_and_asked(ahead, completions, completions)
    assert rewards == [1.0, -0.5]
    assert judge.batches == 1
    assert [row.completion for row in reward.last] == completions
    assert reward.seconds_waited == 1


def test_rewards_of_other_completions_than_were_begun_are_refused():
    with pytest.raises(RuntimeError, match="other completions"):
        begun_and_asked(True, ["[epistemic status: 1] Yes"], ["[epistemic status: 2] Yes"])
