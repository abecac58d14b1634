"""The judge of a run: tried before anything expensive, and refused where it grades too little."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence

from grpo_ao.judges.factory import make_judge
from grpo_ao.judges.flags import JudgeFlags
from grpo_ao.judges.local import LocalJudge
from grpo_ao.judges.protocol import CheckedJudge, Grade, GradeRequest, Judge, JudgeError

ADVICE = "No grade is lost: mend the judge and go on with --resume, or raise --max_unscored."


def tried_judge(flags: JudgeFlags, local: LocalJudge | None = None) -> CheckedJudge:
    """Make the run's judge and let it grade one answer for trial.

    ``local`` is the judge of that name: the run's own base model. Raises JudgeError or ChatError,
    in one sentence, where the judge cannot grade.
    """
    judge = make_judge(flags, local)
    asyncio.run(judge.check())
    return judge


class LimitedJudge:
    """A judge for measurements: raises JudgeError where more than ``limit`` of a batch is None."""

    def __init__(self, judge: Judge, limit: float) -> None:
        self._judge = judge
        self._limit = limit

    async def grade(self, requests: Sequence[GradeRequest]) -> list[Grade]:
        """Grade, and refuse the batch if too much of it has no grade."""
        grades = await self._judge.grade(requests)
        ungraded = [grade.reason for grade in grades if grade.score is None]
        if len(ungraded) > self._limit * len(grades):
            raise JudgeError(
                f"the judge left {len(ungraded)} of {len(grades)} answers ungraded, above "
                f"--max_unscored {self._limit:g} (the most frequent reason: "
                f"{main_reason(ungraded)}). {ADVICE}"
            )
        return grades


def main_reason(reasons: Iterable[str | None]) -> str:
    """Return the most frequent of the reasons why there is no grade."""
    return str(Counter(reasons).most_common(1)[0][0])
