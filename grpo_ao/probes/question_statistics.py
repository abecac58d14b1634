"""What a question set is made of."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from grpo_ao.probes.filters import normalised
from grpo_ao.probes.rows import QuestionRow


@dataclass(frozen=True)
class QuestionStatistics:
    """Counts over a set; ``yes`` and ``no`` are of closed questions with that reference answer.

    ``repeated_texts`` and ``repeated_questions`` count those that are there already in an earlier
    row, apart from case and spaces.
    """

    rows: int
    questions: int
    closed: int
    yes: int
    no: int
    referenced: int
    repeated_texts: int
    repeated_questions: int


def question_statistics(rows: Sequence[QuestionRow]) -> QuestionStatistics:
    """Count what the rows hold."""
    asked = [
        (normalised(question), kind, reference)
        for row in rows
        for question, kind, reference in zip(row.questions, row.kinds, row.references, strict=True)
    ]
    closed = Counter(
        normalised(reference or "") for _, kind, reference in asked if kind == "closed"
    )
    return QuestionStatistics(
        rows=len(rows),
        questions=len(asked),
        closed=closed.total(),
        yes=closed["yes"],
        no=closed["no"],
        referenced=sum(reference is not None for _, _, reference in asked),
        repeated_texts=len(rows) - len({normalised(row.text) for row in rows}),
        repeated_questions=len(asked) - len({question for question, _, _ in asked}),
    )


def statistics_table(found: QuestionStatistics, title: str) -> Table:
    """Lay out the statistics, shares beside counts."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    per_row = found.questions / found.rows if found.rows else 0.0
    lines: list[tuple[str, int, int]] = [
        ("closed", found.closed, found.questions),
        ("open", found.questions - found.closed, found.questions),
        ("closed with the answer Yes", found.yes, found.yes + found.no),
        ("closed with the answer No", found.no, found.yes + found.no),
        ("with a reference answer", found.referenced, found.questions),
        ("repeated texts", found.repeated_texts, found.rows),
        ("repeated questions", found.repeated_questions, found.questions),
    ]
    table.add_row("rows", f"{found.rows:,}", "")
    table.add_row("questions", f"{found.questions:,}", f"{per_row:.2f} a row")
    for name, part, whole in lines:
        table.add_row(name, f"{part:,}", f"{part / whole:.1%}" if whole else "")
    return table
