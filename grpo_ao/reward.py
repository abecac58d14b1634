"""The reward: informative answers, and a confidence that is right about them.

reward = informativeness - lambda * (confidence / 100 - informativeness)^2
"""

import asyncio
import time
from asyncio import AbstractEventLoop
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from grpo_ao.epistemic import ParsedOutput, parse_oracle_output
from grpo_ao.errors import UserError
from grpo_ao.judges.protocol import Grade, GradeRequest, Judge
from grpo_ao.probe import Probe


@dataclass(frozen=True)
class RewardTerms:
    """The reward and its two terms; ``None`` where the judge gave no grade.

    ``calibration`` is the term as it is added, never positive.
    """

    informativeness: float | None
    calibration: float | None
    total: float | None


def calibration_term(confidence: float, informativeness: float, calibration_lambda: float) -> float:
    """Return ``-lambda (confidence / 100 - informativeness)^2``."""
    _check_lambda(calibration_lambda)
    return -calibration_lambda * (confidence / 100 - informativeness) ** 2


def calibrated_reward(
    confidence: float, informativeness: float, calibration_lambda: float
) -> float:
    """Return the reward of a well-formed output: between -lambda and 1."""
    return informativeness + calibration_term(confidence, informativeness, calibration_lambda)


def unparsed_floor(calibration_lambda: float) -> float:
    """Return an unparsed output's reward: one below the least that a parsed one can get."""
    _check_lambda(calibration_lambda)
    return -calibration_lambda - 1.0


def _check_lambda(calibration_lambda: float) -> None:
    if not calibration_lambda >= 0:
        raise UserError(f"lambda must be 0 or more, got {calibration_lambda}.")


def reward_terms(
    output: ParsedOutput, score: float | None, calibration_lambda: float
) -> RewardTerms:
    """Combine a parsed output with its grade. An unparsed output gets the floor, unjudged."""
    if not output.parsed:
        return RewardTerms(None, None, unparsed_floor(calibration_lambda))
    if score is None:
        return RewardTerms(None, None, None)
    term = calibration_term(output.confidence, score, calibration_lambda)
    return RewardTerms(score, term, score + term)


@dataclass(frozen=True)
class ScoredCompletion:
    """One completion with all that is known of it; ``grade`` is None where none was asked for."""

    probe: Probe
    completion: str
    output: ParsedOutput
    grade: Grade | None
    terms: RewardTerms


async def score_completions(
    judge: Judge, probes: Sequence[Probe], completions: Sequence[str], calibration_lambda: float
) -> list[ScoredCompletion]:
    """Parse, grade and reward completions. The judge sees the answer without the confidence."""
    outputs = [parse_oracle_output(completion) for completion in completions]
    asked = [i for i, output in enumerate(outputs) if output.parsed]
    requests = [
        GradeRequest(
            probes[i].text,
            probes[i].question,
            outputs[i].answer,
            probes[i].kind,
            probes[i].reference,
        )
        for i in asked
    ]
    grades = dict(zip(asked, await judge.grade(requests), strict=True))
    return [
        ScoredCompletion(
            probe,
            completion,
            output,
            grades.get(i),
            reward_terms(output, grades[i].score if i in grades else None, calibration_lambda),
        )
        for i, (probe, completion, output) in enumerate(
            zip(probes, completions, outputs, strict=True)
        )
    ]


class Begun(NamedTuple):
    """A batch whose grading has been begun ahead of its reward."""

    probe_ids: list[str]
    completions: list[str]
    scored: Future[list[ScoredCompletion]]


class CalibratedReward:
    """The reward as an async reward function of TRL.

    ``last`` keeps the details of the last batch, in order, for split credit and the monitor;
    ``seconds_waited`` is what that batch's reward waited for the judge. With ``ahead`` a batch may
    be graded from ``begin`` on, while the policy's model is at work on something else: not for a
    judge that needs that model itself.
    """

    __name__ = "calibrated_reward"

    def __init__(
        self,
        judge: Judge,
        probes: Mapping[str, Probe],
        calibration_lambda: float,
        ahead: bool = False,
    ) -> None:
        _check_lambda(calibration_lambda)
        self._judge = judge
        self._probes = probes
        self._lambda = calibration_lambda
        self._ahead = ahead
        self._begun: Begun | None = None
        self.last: list[ScoredCompletion] = []
        self.seconds_waited = 0.0

    def begin(
        self, loop: AbstractEventLoop, probe_ids: Sequence[str], completions: Sequence[str]
    ) -> None:
        """With ``ahead``, begin to grade on ``loop``: the next call waits for these grades."""
        if self._ahead:
            ids, texts = list(probe_ids), list(completions)
            scored = asyncio.run_coroutine_threadsafe(self._score(ids, texts), loop)
            self._begun = Begun(ids, texts, scored)

    async def __call__(
        self, prompts: list, completions: list, probe_id: list[str], **_: Any
    ) -> list[float | None]:
        """Return one reward for each completion, None where the judge gave none."""
        started = time.perf_counter()
        texts = [_content(completion) for completion in completions]
        begun, self._begun = self._begun, None
        if begun is None:
            self.last = await self._score(probe_id, texts)
        elif (begun.probe_ids, begun.completions) == (probe_id, texts):
            self.last = await asyncio.wrap_future(begun.scored)
        else:
            raise RuntimeError("rewards are asked for other completions than were begun with.")
        self.seconds_waited = time.perf_counter() - started
        return [scored.terms.total for scored in self.last]

    async def _score(
        self, probe_ids: Sequence[str], completions: Sequence[str]
    ) -> list[ScoredCompletion]:
        probes = [self._probes[identity] for identity in probe_ids]
        return await score_completions(self._judge, probes, completions, self._lambda)


def _content(completion: str | list[dict[str, str]]) -> str:
    # TRL hands over strings for plain prompts and messages for conversations.
    return completion if isinstance(completion, str) else completion[-1]["content"]
