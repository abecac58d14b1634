"""The reward as TRL calls it, and the limit on what a judge leaves ungraded."""

import asyncio
from dataclasses import replace

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments
from trl.trainer.utils import is_async_callable

from grpo_ao.answer import Answer
from grpo_ao.judges.protocol import Grade, JudgeError
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.probe import Positions, Probe
from grpo_ao.reward import reward_rule
from grpo_ao.training.rewarding import WINDOW, CalibratedReward, UnscoredLimit
from tests.judges.fakes import CountingJudge


def probe(question="Is it late?", reference: str | None = "Yes"):
    return Probe("It is ten to twelve.", question, "closed", 18, Positions(20), reference, "time")


def test_a_negative_lambda_is_refused_before_training():
    with pytest.raises(ValueError, match="lambda must be 0 or more"):
        CalibratedReward(ReferenceJudge(), {}, reward_rule(-0.1))


def test_only_parsed_completions_are_judged_and_each_gets_its_own_grade():
    judge = CountingJudge(unscored=frozenset({"second"}))
    completions = [f"[epistemic status: 90] {word}" for word in ("first", "second")]
    completions.insert(1, "no tag")
    probes = [probe(f"Question {i}?") for i in range(3)]
    reward = CalibratedReward(judge, {p.id: p for p in probes}, reward_rule(0.5))
    rewards = call(reward, completions, [p.id for p in probes])
    assert [request.answer for request in judge.asked] == ["first", "second"]
    assert [request.question for request in judge.asked] == ["Question 0?", "Question 2?"]
    assert rewards[1:] == [-1.5, None]
    first, unparsed, ungraded = reward.last
    assert rewards[0] == first.reward is not None
    assert (unparsed.ungraded, ungraded.ungraded) == (False, True)
    assert ungraded.reason == "told to"


def ids_of(completions):
    return [list(completion.encode()) for completion in completions]


def call(reward, completions, probe_ids):
    ids = ids_of(completions)
    prompts = ["p"] * len(completions)
    return asyncio.run(reward(prompts, completions, completion_ids=ids, probe_id=probe_ids, G=8))


def test_trl_takes_the_reward_for_an_async_function_with_a_name():
    reward = CalibratedReward(ReferenceJudge(), {}, reward_rule(0.5))
    assert is_async_callable(reward)
    assert reward.__name__ == "calibrated_reward"


def test_rewards_come_in_the_order_of_the_completions_by_probe_id():
    late, early = probe("Is it late?", "Yes"), probe("Is it early?", "No")
    reward = CalibratedReward(ReferenceJudge(), {p.id: p for p in (late, early)}, reward_rule(0.5))
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
    reward = CalibratedReward(
        ReferenceJudge(), {p.id: p for p in (known, unknown)}, reward_rule(0.5)
    )
    found = call(reward, ["[epistemic status: 100] Yes"] * 3, [unknown.id, known.id, unknown.id])
    assert found == [None, 1.0, None]


def test_the_details_are_of_the_last_batch_alone():
    asked = probe()
    reward = CalibratedReward(ReferenceJudge(), {asked.id: asked}, reward_rule(0.5))
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
    reward = CalibratedReward(judge, {known.id: known}, reward_rule(0.5), ahead)

    async def both():
        loop = asyncio.get_running_loop()
        begun = zip(begun_with, ids_of(begun_with), strict=True)
        reward.begin(loop, [Answer.read(known, *read) for read in begun])
        asyncio.get_running_loop().call_later(0.02, judge.may.set)
        ids = [known.id] * len(asked_for)
        return await reward(["p"] * len(ids), asked_for, ids_of(asked_for), ids)

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


# The limit


def answers(*scores: float | None) -> list[Answer]:
    """Answers with these grades; 2 stands for one that could not be parsed."""
    completions = ["no tag" if score == 2 else "[epistemic status: 50] Yes" for score in scores]
    return [
        replace(
            Answer.read(probe(), completion),
            informativeness=None if score == 2 else score,
            reason="no credit" if score is None else None,
        )
        for score, completion in zip(scores, completions, strict=True)
    ]


class Steps:
    """A run's steps, as far as the callback sees them."""

    def __init__(self, limit: float) -> None:
        self.reward = CalibratedReward(ReferenceJudge(), {}, reward_rule(0.5))
        self.callback = UnscoredLimit(self.reward, limit)
        self.state = TrainerState()

    def step(self, *scores: float | None) -> bool:
        """Make one step; say whether the run is to stop with a checkpoint."""
        self.reward.last = answers(*scores)
        self.state.global_step += 1
        control = TrainerControl()
        self.callback.on_step_end(TrainingArguments(use_cpu=True), self.state, control)
        assert control.should_save == control.should_training_stop
        return control.should_training_stop


def test_the_run_stops_when_the_mean_of_ten_steps_passes_the_limit():
    steps = Steps(0.2)
    # Unparsed completions are not the judge's fault.
    assert not any(steps.step(1.0, 0.0, 2, 2) for _ in range(WINDOW))
    # One of four in each step is .25: after eight such steps the mean is .2, after nine above it.
    assert [steps.step(1.0, None, 2, 0.0) for _ in range(9)] == [False] * 8 + [True]
    message = (
        "left 22% of the completions of the last 10 steps.* no credit.* after step 19, .*--resume"
    )
    with pytest.raises(JudgeError, match=message):
        steps.callback.check()


def test_fewer_than_ten_steps_stop_nothing_and_a_healthy_run_passes_the_check():
    steps = Steps(0.2)
    assert not any(steps.step(None) for _ in range(WINDOW - 1))
    steps.callback.check()
    assert not any(Steps(1.0).step(None) for _ in range(2 * WINDOW))
