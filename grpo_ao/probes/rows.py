"""Question sets in the format of ``ceselder/wildchat-oracle-questions``.

One row holds a text and its questions. Columns: ``wildchat_question`` (the text), ``language``,
``oracle_questions`` (a list of strings) and, where they are known, ``question_kinds``,
``question_families`` and ``reference_answers``, lists of the same length.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_ao.errors import UserError
from grpo_ao.probe import Layers, Positions, Probe, QuestionKind, unit_draw
from grpo_ao.probes.sources import read_rows
from grpo_ao.wording import question_kind


@dataclass(frozen=True)
class QuestionRow:
    """One text with its questions; the other lists are as long as ``questions``."""

    text: str
    questions: tuple[str, ...]
    kinds: tuple[QuestionKind, ...]
    references: tuple[str | None, ...]
    families: tuple[str, ...]


def parse_row(row: Any) -> QuestionRow:
    """Validate one row; raise ``ValueError`` with the reason if it is broken."""
    if not isinstance(row, dict):
        raise UserError(f"it is a {type(row).__name__}, not an object with columns")
    for column in ("wildchat_question", "oracle_questions"):
        if column not in row:
            raise UserError(f"the column '{column}' is missing")
    text, questions = row["wildchat_question"], row["oracle_questions"]
    if not isinstance(text, str) or not text.strip():
        raise UserError("'wildchat_question' is not a text or is empty")
    if not isinstance(questions, list) or not all(isinstance(q, str) for q in questions):
        raise UserError("'oracle_questions' is not a list of texts")
    asked = tuple(q.strip() for q in questions)
    if not asked or not all(asked):
        raise UserError("'oracle_questions' has no questions or an empty one")
    kinds = _optional(row, "question_kinds", len(asked)) or [question_kind(q) for q in asked]
    if not all(kind in ("closed", "open") for kind in kinds):
        raise UserError("'question_kinds' holds something other than 'closed' and 'open'")
    references = _optional(row, "reference_answers", len(asked)) or [None] * len(asked)
    if not all(reference is None or isinstance(reference, str) for reference in references):
        raise UserError("'reference_answers' holds something other than texts and null")
    families = _optional(row, "question_families", len(asked)) or kinds
    if not all(isinstance(family, str) and family for family in families):
        raise UserError("'question_families' holds something other than names")
    # Half of a surrogate pair is valid in JSON, but no tokenizer takes it.
    "".join((text, *asked, *filter(None, references))).encode()
    return QuestionRow(text, asked, tuple(kinds), tuple(references), tuple(families))


def _optional(row: dict, column: str, length: int) -> list | None:
    values = row.get(column)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != length:
        raise UserError(f"'{column}' is not a list of {length} entries, one for each question")
    return values


@dataclass(frozen=True)
class LoadedRows:
    """The rows that are sound, and a line for each that is not."""

    rows: list[QuestionRow]
    problems: list[str]


def load_rows(source: str, strict: bool = False) -> LoadedRows:
    """Load a question set from a JSONL path or, if ``source`` is no path, from the Hub.

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


def probes_of(
    rows: Iterable[QuestionRow], layers: Sequence[Layers], positions: Positions
) -> list[Probe]:
    """Make one probe a question, read at one of ``layers``, drawn by a hash of its words.

    Questions for which the set names no family are grouped by kind. Equal questions about equal
    texts are one probe.
    """
    probes: dict[str, Probe] = {}
    for row in rows:
        columns = (row.questions, row.kinds, row.references, row.families)
        for question, kind, reference, family in zip(*columns, strict=True):
            drawn = layers[int(unit_draw("layer", row.text, question) * len(layers))]
            probe = Probe(row.text, question, kind, drawn, positions, reference, family)
            probes.setdefault(probe.id, probe)
    return list(probes.values())
