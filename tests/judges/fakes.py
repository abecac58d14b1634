"""Judges without a model, for tests and for the processes that tests start."""

import asyncio
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo_ao.judges.cache import CachedJudge
from grpo_ao.judges.protocol import Grade, GradeRequest, Keep, discard


def request(number: int) -> GradeRequest:
    return GradeRequest("A text.", "A question?", f"answer {number}", "open", None)


def score_of(answer: str) -> float:
    """A score that depends on the answer alone."""
    return int(hashlib.sha256(answer.encode("utf-8", "replace")).hexdigest()[:4], 16) % 5 / 4


class CountingJudge:
    """Grades by ``score_of``, counts what it is asked, and gives None where told to."""

    def __init__(self, identity: str = "counting", unscored: frozenset[str] = frozenset()) -> None:
        self.identity = identity
        self.unscored = unscored
        self.asked: list[GradeRequest] = []

    async def check(self) -> None:
        """Can always grade."""

    async def grade(self, requests: Sequence[GradeRequest], keep: Keep = discard) -> list[Grade]:
        grades = []
        for index, request in enumerate(requests):
            self.asked.append(request)
            grades.append(self._grade(request.answer))
            keep(index, grades[-1])
        return grades

    def _grade(self, answer: str) -> Grade:
        if answer in self.unscored:
            return Grade(None, "told to", "?", 10, 1, 0.5)
        return Grade(score_of(answer), None, f"raw of {answer[:20]!a}", 10, 1, 0.5)


async def write_until_killed(path: Path) -> None:
    """Grade through a cache for ever; print the number of each answer that has come back."""
    judge = CachedJudge(CountingJudge(), path)
    number = 0
    while True:
        batch = [request(number + n) for n in range(7)]
        await judge.grade(batch)
        number += len(batch)
        print(number, flush=True)


async def write_shared(path: Path, count: int) -> None:
    """Grade the same answers as other processes do, in batches of 10; print what was asked."""
    inner = CountingJudge()
    judge = CachedJudge(inner, path)
    for first in range(0, count, 10):
        batch = [request(first + n) for n in range(10)]
        grades = await judge.grade(batch)
        assert [g.score for g in grades] == [score_of(r.answer) for r in batch]
    print(len(inner.asked), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "until_killed":
        asyncio.run(write_until_killed(Path(sys.argv[2])))
    asyncio.run(write_shared(Path(sys.argv[2]), int(sys.argv[3])))
