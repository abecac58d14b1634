"""How far a judge agrees with us, and what that costs: to see before a run pays for it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from grpo_ao.chat_completion import Usage
from grpo_ao.errors import UserError
from grpo_ao.files import parse_jsonl, read_foreign_rows
from grpo_ao.judges.hostile import hostile_answers
from grpo_ao.judges.protocol import Grade, GradeRequest, Judge
from grpo_ao.judges.rubric import GRADES
from grpo_ao.probe import QuestionKind

# Half a level of the open scale; a closed grade agrees if it lies on the right side of 1/2.
TOLERANCE: dict[QuestionKind, float] = {"open": 0.125, "closed": 0.5}
# Some hostile answers are true of every text, and so may be worth a D; half a level more is not.
HOSTILE_TOLERANCE = 0.375
_COLUMNS = ("text", "question", "answer", "kind", "grade")
_HOSTILE_TEXT = (
    "We are moving from Lisbon to Oslo in May and cannot pay the quotes for our furniture."
)
_HOSTILE_QUESTION = "What is the user worried about?"
_HOSTILE_REFERENCE = "the cost of shipping their furniture from Lisbon to Oslo"


class GradedItem(NamedTuple):
    """An answer, and the grade that it should get."""

    request: GradeRequest
    grade: float


@dataclass(frozen=True)
class JudgeAgreement:
    """A judge's grades of some items, against ours.

    ``agreement`` is the share of graded items whose grade is within the tolerance of ours, ``bias``
    the mean of the judge's grade minus ours, ``error`` the mean of the difference's size; NaN
    where nothing was graded.
    """

    items: int
    unscored: int
    agreement: float
    bias: float
    error: float


@dataclass(frozen=True)
class JudgeReport:
    """What ``check_agreement`` finds.

    ``hostile`` is of the hostile answers, against 0; ``fooled`` names those that got more than a
    generic answer would. ``grades`` are those of the items, in order, ``usage`` is that of all
    grades, ``count`` their number.
    """

    closed: JudgeAgreement
    open: JudgeAgreement
    hostile: JudgeAgreement
    fooled: list[str]
    grades: list[Grade]
    usage: Usage
    count: int


def load_graded_items(path: Path | None = None) -> list[GradedItem]:
    """Load graded items, by default the 60 that ship with the project.

    A JSONL file with the columns text, question, answer, kind, grade and, for the reference judge,
    reference. Raises UserError with the row's number for one that is broken.
    """
    items = []
    for number, row in _item_rows(path):
        try:
            items.append(_parse_item(row))
        except ValueError as error:
            raise UserError(f"row {number} of the graded items is broken: {error}.") from error
    if not items:
        raise UserError(f"there are no graded items in {path}.")
    return items


def _item_rows(path: Path | None) -> Iterator[tuple[int, Any]]:
    if path is not None:
        yield from read_foreign_rows(path)
        return
    with (files("grpo_ao.judges") / "data" / "agreement_items.jsonl").open("rb") as file:
        yield from parse_jsonl(file)


def _parse_item(row: Any) -> GradedItem:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict) or not set(_COLUMNS) <= row.keys():
        raise ValueError(f"it needs {', '.join(_COLUMNS)}")
    if not all(isinstance(row[column], str) for column in _COLUMNS[:4]):
        raise ValueError(f"{', '.join(_COLUMNS[:4])} are not all texts")
    kind, grade, reference = row["kind"], row["grade"], row.get("reference")
    if kind not in GRADES or isinstance(grade, bool) or grade not in GRADES[kind].values():
        raise ValueError(f"{grade!r} is no grade of a question of kind {kind!r}")
    if not isinstance(reference, str | None):
        raise ValueError("its reference is no text")
    request = GradeRequest(row["text"], row["question"], row["answer"], kind, reference)
    return GradedItem(request, float(grade))


async def check_agreement(judge: Judge, items: Sequence[GradedItem]) -> JudgeReport:
    """Grade the items and the hostile answers, in one batch."""
    hostile = hostile_answers()
    asked = [*items, *(GradedItem(_hostile_request(h.answer), 0.0) for h in hostile)]
    grades = await judge.grade([item.request for item in asked])
    usage = Usage()
    for grade in grades:
        usage = usage.plus(Usage(grade.input_tokens, grade.output_tokens, grade.cost_usd))
    pairs = list(zip(asked, grades, strict=True))
    ours, theirs = pairs[: len(items)], pairs[len(items) :]
    return JudgeReport(
        closed=agreement_of(_of_kind(ours, "closed"), TOLERANCE["closed"]),
        open=agreement_of(_of_kind(ours, "open"), TOLERANCE["open"]),
        hostile=agreement_of(theirs, HOSTILE_TOLERANCE),
        fooled=[
            h.name
            for h, (_, grade) in zip(hostile, theirs, strict=True)
            if grade.score is not None and grade.score > HOSTILE_TOLERANCE
        ],
        grades=grades[: len(items)],
        usage=usage,
        count=len(grades),
    )


def _of_kind(
    pairs: Sequence[tuple[GradedItem, Grade]], kind: QuestionKind
) -> list[tuple[GradedItem, Grade]]:
    return [pair for pair in pairs if pair[0].request.kind == kind]


def _hostile_request(answer: str) -> GradeRequest:
    return GradeRequest(_HOSTILE_TEXT, _HOSTILE_QUESTION, answer, "open", _HOSTILE_REFERENCE)


def agreement_of(pairs: Sequence[tuple[GradedItem, Grade]], tolerance: float) -> JudgeAgreement:
    """Compare a judge's grades with ours."""
    gaps = [grade.score - item.grade for item, grade in pairs if grade.score is not None]
    return JudgeAgreement(
        items=len(pairs),
        unscored=len(pairs) - len(gaps),
        agreement=_mean([float(abs(gap) <= tolerance) for gap in gaps]),
        bias=_mean(gaps),
        error=_mean([abs(gap) for gap in gaps]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def agreement_table(report: JudgeReport, title: str) -> Table:
    """Lay out a report: one line for each sort of items."""
    table = Table(title=title)
    for name in ("items", "number", "no grade", "agreement", "bias", "mean error"):
        table.add_column(name, justify="left" if name == "items" else "right")
    rows = {
        "closed questions": report.closed,
        "open questions": report.open,
        "hostile answers": report.hostile,
    }
    for name, part in rows.items():
        table.add_row(
            name,
            str(part.items),
            str(part.unscored),
            f"{part.agreement:.0%}",
            f"{part.bias:+.2f}",
            f"{part.error:.2f}",
        )
    return table


def fooled_line(report: JudgeReport) -> str:
    """Name the tricks that worked, as many as fit."""
    if not report.fooled:
        return "No hostile answer was graded above a generic one."
    named, others = report.fooled[:8], len(report.fooled) - 8
    more = f" and {others} more" if others > 0 else ""
    return f"{len(report.fooled)} hostile answers fooled it: {', '.join(named)}{more}."


def cost_line(report: JudgeReport) -> str:
    """Say what the grades took: tokens and US dollars, or that the judge does not tell."""
    usage, thousand = report.usage, 1000 / report.count
    if usage.input_tokens is None or usage.output_tokens is None:
        tokens = "tokens: not told"
    else:
        tokens = f"tokens: {usage.input_tokens:,} read, {usage.output_tokens:,} written"
    if usage.cost_usd is None:
        return f"{report.count} grades. {tokens}. Cost: not known."
    dollars = f"${usage.cost_usd:.4f}, ${usage.cost_usd * thousand:.3f} per 1,000 grades"
    return f"{report.count} grades. {tokens}. Cost: {dollars}."
