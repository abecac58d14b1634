"""What a judge is asked and what it says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from grpo_ao.errors import UserError
from grpo_ao.probe import QuestionKind


class JudgeError(UserError):
    """A judge cannot grade at all; the message is one sentence for the user."""


@dataclass(frozen=True)
class GradeRequest:
    """One answer to grade. The stated confidence is not part of it: a judge never sees it.

    ``choices`` are the known answers to the question, the reference among them, where there are any
    but Yes and No.
    """

    text: str
    question: str
    answer: str
    kind: QuestionKind
    reference: str | None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grade:
    """Informativeness in [0, 1], or ``None`` and the reason why there is none.

    ``raw`` is the judge's own reply. Tokens and cost (US dollars) are what getting this grade
    took now, failed replies included: 0 for one that comes from a cache, ``None`` where the judge
    does not say. Raises ValueError for a score outside of [0, 1].
    """

    score: float | None
    reason: str | None = None
    raw: str | None = None
    input_tokens: int | None = 0
    output_tokens: int | None = 0
    cost_usd: float | None = 0.0

    def __post_init__(self) -> None:
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"a grade lies in [0, 1], and a judge gave {self.score}.")


Keep = Callable[[int, Grade], None]
"""Takes each grade of a batch as it comes, with the index of its request."""


def discard(index: int, grade: Grade) -> None:
    """Keep nothing."""


@runtime_checkable
class Judge(Protocol):
    """Anything that grades many answers at once, in the order of the requests."""

    async def grade(self, requests: Sequence[GradeRequest]) -> list[Grade]:
        """Return one grade for each request."""
        ...


@runtime_checkable
class CheckedJudge(Judge, Protocol):
    """A judge that can be tried before it is relied on."""

    @property
    def identity(self) -> str:
        """Name all that its grades depend on besides the request: equal only for equal judges."""
        ...

    async def check(self) -> None:
        """Grade one answer for trial; raise JudgeError if the judge cannot grade."""
        ...


class PaidJudge(CheckedJudge, Protocol):
    """A judge whose grades cost something, and so are stored as they come."""

    async def grade(self, requests: Sequence[GradeRequest], keep: Keep = discard) -> list[Grade]:
        """Return one grade for each request, each after ``keep`` has had it."""
        ...
