"""What a judge is asked and what it says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from grpo_ao.probes.probe import QuestionKind


@dataclass(frozen=True)
class GradeRequest:
    """One answer to grade. The stated confidence is not part of it: a judge never sees it."""

    text: str
    question: str
    answer: str
    kind: QuestionKind
    reference: str | None


@dataclass(frozen=True)
class Grade:
    """Informativeness in [0, 1], or ``None`` and the reason why there is none."""

    score: float | None
    reason: str | None = None
    raw: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0


@runtime_checkable
class Judge(Protocol):
    """Anything that grades many answers at once, in the order of the requests."""

    async def grade(self, requests: Sequence[GradeRequest]) -> list[Grade]:
        """Return one grade for each request."""
        ...
