"""The reward as TRL calls it: completions graded by the judge."""

import asyncio
import time
from asyncio import AbstractEventLoop
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from grpo_ao.answer import Answer
from grpo_ao.judges.protocol import Judge
from grpo_ao.measuring.ask import graded
from grpo_ao.reward import RewardRule, rewarded


class CalibratedReward:
    """The reward as an async reward function of TRL, of the answers that ``begin`` was given.

    ``last`` keeps the last batch's answers, in order, for split credit and the monitor;
    ``seconds_waited`` is what that batch's reward waited for the judge. With ``ahead`` a batch is
    graded from ``begin`` on, while the policy's model is at work on something else: not for a
    judge that needs that model itself.
    """

    __name__ = "calibrated_reward"

    def __init__(self, judge: Judge, rule: RewardRule, ahead: bool = False) -> None:
        self._judge = judge
        self.rule = rule
        self._ahead = ahead
        self._begun: Future[list[Answer]] | None = None
        self.last: list[Answer] = []
        self.seconds_waited = 0.0

    def begin(self, loop: AbstractEventLoop, answers: list[Answer]) -> None:
        """Take the answers that rewards will be asked for; with ``ahead``, grade on ``loop``."""
        self.last = answers
        if self._ahead:
            self._begun = asyncio.run_coroutine_threadsafe(self._rewarded(answers), loop)

    async def __call__(
        self, prompts: list, completions: list, completion_ids: list[list[int]], **_: Any
    ) -> list[float | None]:
        """Return one reward for each completion, None where the judge gave none."""
        started = time.perf_counter()
        if [list(answer.token_ids) for answer in self.last] != completion_ids:
            raise RuntimeError("rewards are asked for other completions than were begun with.")
        if self._begun is None:
            self.last = await self._rewarded(self.last)
        else:
            self.last, self._begun = await asyncio.wrap_future(self._begun), None
        self.seconds_waited = time.perf_counter() - started
        return [answer.reward for answer in self.last]

    async def _rewarded(self, answers: Sequence[Answer]) -> list[Answer]:
        parsed = iter(await graded(self._judge, [a for a in answers if a.parsed]))
        known = [next(parsed) if answer.parsed else answer for answer in answers]
        return [rewarded(answer, self.rule) for answer in known]
