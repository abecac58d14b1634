"""What a question set is made of."""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from grpo_ao.probes.filters import normalised
from grpo_ao.probes.items import Item

Statistics = dict[str, tuple[int, int]]
"""Counts by name: how many, and of how many."""


def question_statistics(rows: Sequence[Sequence[Item]]) -> Statistics:
    """Count what the rows hold; ``questions`` are of so many rows.

    Repeated is what is there already in an earlier row, apart from case and spaces.
    """
    asked = [item for row in rows for item in row]
    closed = Counter(normalised(item.target or "") for item in asked if item.kind == "closed")
    texts = {normalised(row[0].text) for row in rows}
    questions = {normalised(item.question) for item in asked}
    told = closed["yes"] + closed["no"]
    return {
        "questions": (len(asked), len(rows)),
        "closed": (closed.total(), len(asked)),
        "open": (len(asked) - closed.total(), len(asked)),
        "closed with the answer Yes": (closed["yes"], told),
        "closed with the answer No": (closed["no"], told),
        "with a reference answer": (sum(item.target is not None for item in asked), len(asked)),
        "repeated texts": (len(rows) - len(texts), len(rows)),
        "repeated questions": (len(asked) - len(questions), len(asked)),
    }


def statistics_table(found: Statistics, title: str) -> Table:
    """Lay out the statistics, shares beside counts."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    questions, rows = found["questions"]
    table.add_row("rows", f"{rows:,}", "")
    table.add_row("questions", f"{questions:,}", f"{questions / max(1, rows):.2f} a row")
    for name, (part, whole) in found.items():
        if name != "questions":
            table.add_row(name, f"{part:,}", f"{part / whole:.1%}" if whole else "")
    return table
