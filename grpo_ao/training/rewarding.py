"""The reward as TRL calls it: completions graded by the judge."""

import asyncio
import time
from asyncio import AbstractEventLoop
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from grpo_ao.answer import Answer
from grpo_ao.judges.protocol import Judge
from grpo_ao.measuring.ask import graded
from grpo_ao.probe import Probe
from grpo_ao.reward import RewardRule, rewarded


class _Begun(NamedTuple):
    """A batch whose grading has begun ahead of its reward."""

    answers: list[Answer]
    rewarded: Future[list[Answer]]


class CalibratedReward:
    """The reward as an async reward function of TRL.

    ``last`` keeps the last batch's answers, in order, for split credit and the monitor;
    ``seconds_waited`` is what that batch's reward waited for the judge. With ``ahead`` a batch may
    be graded from ``begin`` on, while the policy's model is at work on something else: not for a
    judge that needs that model itself.
    """

    __name__ = "calibrated_reward"

    def __init__(
        self,
        judge: Judge,
        probes: Mapping[str, Probe],
        rule: RewardRule,
        ahead: bool = False,
    ) -> None:
        self._judge = judge
        self._probes = probes
        self.rule = rule
        self._ahead = ahead
        self._begun: _Begun | None = None
        self.last: list[Answer] = []
        self.seconds_waited = 0.0

    def begin(self, loop: AbstractEventLoop, answers: list[Answer]) -> None:
        """With ``ahead``, begin to grade on ``loop``: the next call waits for these grades."""
        if self._ahead:
            future = asyncio.run_coroutine_threadsafe(self._rewarded(answers), loop)
            self._begun = _Begun(answers, future)

    async def __call__(
        self,
        prompts: list,
        completions: list[str],
        completion_ids: list[list[int]],
        probe_id: list[str],
        **_: Any,
    ) -> list[float | None]:
        """Return one reward for each completion, None where the judge gave none."""
        started = time.perf_counter()
        answers = [
            Answer.read(self._probes[identity], completion, ids)
            for identity, completion, ids in zip(probe_id, completions, completion_ids, strict=True)
        ]
        begun, self._begun = self._begun, None
        if begun is None:
            self.last = await self._rewarded(answers)
        elif begun.answers == answers:
            self.last = await asyncio.wrap_future(begun.rewarded)
        else:
            raise RuntimeError("rewards are asked for other completions than were begun with.")
        self.seconds_waited = time.perf_counter() - started
        return [answer.reward for answer in self.last]

    async def _rewarded(self, answers: Sequence[Answer]) -> list[Answer]:
        parsed = iter(await graded(self._judge, [a for a in answers if a.parsed]))
        known = [next(parsed) if answer.parsed else answer for answer in answers]
        return [rewarded(answer, self.rule) for answer in known]
