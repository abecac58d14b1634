"""Question sets: rows of a text and its questions, in files or on the Hub.

Columns are ``text`` and ``questions``, a list, and, where they are known, ``kinds``, ``families``
and ``answers``, lists of the same length. A row of one question may have ``question``, ``kind``,
``family`` and ``answer``, as in CSV. ``ceselder/wildchat-oracle-questions`` has names of its own
for them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from grpo_ao.errors import UserError
from grpo_ao.probes.items import Item
from grpo_ao.probes.sources import read_rows
from grpo_ao.wording import question_kind

_NAMES = {
    "text": ("text", "wildchat_question"),
    "questions": ("questions", "question", "oracle_questions"),
    "kinds": ("kinds", "kind", "question_kinds"),
    "answers": ("answers", "answer", "reference_answers"),
    "families": ("families", "family", "question_families"),
}

_OF_ONE = ("question", "kind", "answer", "family")


def parse_row(row: Any) -> list[Item]:
    """Return a row's questions, all about its text; UserError, with the reason, if it is broken.

    A question without a family is grouped by its kind.
    """
    if not isinstance(row, dict):
        raise UserError(f"it is a {type(row).__name__}, not an object with columns")
    name, text = _column(row, "text")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"'{name}' is not a text or is empty")
    name, questions = _column(row, "questions")
    questions = [questions] if name in _OF_ONE else questions
    if not isinstance(questions, list) or not all(isinstance(q, str) for q in questions):
        raise UserError(f"'{name}' is not a list of texts")
    asked = tuple(q.strip() for q in questions)
    if not asked or not all(asked):
        raise UserError(f"'{name}' has no questions or an empty one")
    name, kinds = _optional(row, "kinds", len(asked))
    kinds = kinds or [question_kind(q) for q in asked]
    if not all(kind in ("closed", "open") for kind in kinds):
        raise UserError(f"'{name}' holds something other than 'closed' and 'open'")
    name, references = _optional(row, "answers", len(asked))
    references = references or [None] * len(asked)
    if not all(reference is None or isinstance(reference, str) for reference in references):
        raise UserError(f"'{name}' holds something other than texts and null")
    name, families = _optional(row, "families", len(asked))
    families = families or kinds
    if not all(isinstance(family, str) and family for family in families):
        raise UserError(f"'{name}' holds something other than names")
    # Half of a surrogate pair is valid in JSON, but no tokenizer takes it.
    "".join((text, *asked, *filter(None, references))).encode()
    columns = zip(families, asked, references, kinds, strict=True)
    return [Item(family, text, q, reference, kind=kind) for family, q, reference, kind in columns]


def _column(row: dict, column: str) -> tuple[str, Any]:
    """Return the name that a row has for a column, and what is there."""
    for name in _NAMES[column]:
        if name in row:
            return name, row[name]
    raise UserError(f"the column '{column}' is missing")


def _optional(row: dict, column: str, length: int) -> tuple[str, list | None]:
    name = next((name for name in _NAMES[column] if name in row), column)
    values = row.get(name)
    if values is None or values == "":
        return name, None
    values = [values] if name in _OF_ONE else values
    if not isinstance(values, list) or len(values) != length:
        raise UserError(f"'{name}' is not a list of {length} entries, one for each question")
    return name, values


@dataclass(frozen=True)
class LoadedRows:
    """The questions of each row that is sound, and a line for each that is not."""

    rows: list[list[Item]]
    problems: list[str]


def load_rows(source: str, strict: bool = False) -> LoadedRows:
    """Load a question set from a file or, if ``source`` is no path, from the Hub.

    Every broken row is reported by its number and reason in ``problems``; with ``strict`` the
    first is an error. Raises UserError if no sound row is left.
    """
    rows, problems = [], []
    for number, entry in read_rows(source):
        try:
            if isinstance(entry, ValueError):
                raise entry
            rows.append(parse_row(entry))
        except ValueError as error:
            problem = f"row {number} of {source} is left out: {error}."
            if strict:
                raise UserError(problem) from error
            problems.append(problem)
    if not rows:
        first = f" {problems[0]}" if problems else ""
        raise UserError(f"the question set {source} has no rows with questions.{first}")
    return LoadedRows(rows, problems)


def items_of(rows: Iterable[Sequence[Item]]) -> list[Item]:
    """Return the questions of all rows, those that are asked of equal texts twice only once."""
    items: dict[tuple[str, str], Item] = {}
    for item in chain.from_iterable(rows):
        items.setdefault((item.text, item.question), item)
    return list(items.values())
