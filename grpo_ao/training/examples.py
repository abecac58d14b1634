"""What the supervised stage teaches an oracle: texts with questions and their right answers.

The kinds are those of Activation Oracles (arXiv 2512.15674): closed questions of benchmarks,
question sets with answers, LatentQA's, and context prediction, which needs plain text alone.
Beside them, questions made from plain text (is a word in it?) and from labelled texts. An example
is an ``Item`` whose answer is known, and whose family is its source.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
from pydantic import TypeAdapter

from grpo_ao.errors import UserError
from grpo_ao.files import parse_jsonl, read_faults
from grpo_ao.mini.probes import mini_lessons, mini_questions
from grpo_ao.probe import drawn_from, kept_for_calibration, split_of
from grpo_ao.probes.benchmarks import INSTRUCTION, training_items
from grpo_ao.probes.items import Item
from grpo_ao.probes.rows import load_rows
from grpo_ao.probes.sources import read_rows

_MENTIONS = (
    "Does the text mention the word '{}'?",
    "Is the word '{}' in the text?",
    "Does '{}' occur in what was read?",
    "Has the writer used the word '{}'?",
    "Can the word '{}' be found in this text?",
    "Did the word '{}' appear?",
)
_LABELS = (
    "Is this text {}?",
    "Would you label this text as {}?",
    "Is '{}' the right label for this text?",
    "Does the label '{}' fit what was read?",
    "Would a reader call this text {}?",
    "Is it true that this text is {}?",
)
# The last two wordings are not taught: they are for the questions of the calibration.
_TAUGHT, _UNTAUGHT = slice(-2), slice(-2, None)
# Held-out questions of the mini world.
_MINI_EXAM = 4000
_WORD = re.compile(r"[A-Za-z]{4,}")


@dataclass(frozen=True)
class _Behaviour:
    """A row of LatentQA: what the subject reads, and the label of the questions about it."""

    label: str
    system: str | None = None
    control_user: str | None = None
    stimulus_user: str | None = None


_ANSWERS = TypeAdapter(dict[str, list[tuple[str, str]]])
_BEHAVIOURS = TypeAdapter(list[_Behaviour])


def is_taught(text: str, kept_share: float) -> bool:
    """Tell whether the supervised stage may see a text.

    It is of the training split, and not among the ``kept_share`` of that which the warm start and
    GRPO need unseen.
    """
    return split_of(text) == "train" and not kept_for_calibration(text, kept_share)


def benchmark_examples(
    benchmarks: Sequence[str], data_dir: Path | None, per_context: int
) -> Iterator[Item]:
    """Yield the benchmarks' training questions, ``per_context`` about each context."""
    for benchmark in benchmarks:
        yield from training_items(benchmark, data_dir, per_context)


def question_set_examples(source: str, mini_count: int) -> Iterator[Item]:
    """Yield the questions with reference answers of a set: JSONL, a Hub id, or ``mini``.

    Of the mini world ``mini_count`` to teach, and some held-out ones. Raises UserError for a set
    without references.
    """
    if source == "mini":
        for item in chain(mini_lessons(mini_count), mini_questions("heldout", _MINI_EXAM)):
            yield replace(item, family=f"mini/{item.family}")
        return
    count = 0
    for row in load_rows(source).rows:
        for item in row:
            if item.target:
                count += 1
                yield replace(item, family=Path(source).stem, text=item.text.strip())
    if not count:
        raise UserError(f"the question set {source} has no reference answers, so none to teach.")


def labelled_examples(path: Path, taught: bool = True) -> Iterator[Item]:
    """Yield a question with Yes and one with No about each text of JSONL with text and label.

    In wordings that are ``taught``, or in those that are not.
    """
    rows = [(text, row) for text, row in _objects(str(path)) if isinstance(row.get("label"), str)]
    labels, wordings = sorted({row["label"] for _, row in rows}), _wordings(_LABELS, taught)
    if len(labels) < 2:
        raise UserError(f"{path} needs rows with 'text' and 'label', and two labels at least.")
    for text, row in rows:
        others = [label for label in labels if label != row["label"]]
        other = drawn_from(others, "label", text)
        for label, answer in ((row["label"], "Yes"), (other, "No")):
            wording = drawn_from(wordings, "label wording", text, answer)
            yield Item(path.name.split(".")[0], text, _closed(wording, label), answer)


def mention_examples(texts: Sequence[str], taught: bool = True) -> Iterator[Item]:
    """Yield a question with Yes and one with No about the words of each text.

    The absent word is of another text, so that no word tells the answer by itself. In wordings
    that are ``taught``, or in those that are not.
    """
    wordings = _wordings(_MENTIONS, taught)
    for text in texts:
        words = sorted(set(_WORD.findall(text)))
        present = {word.lower() for word in words}
        candidates = _WORD.findall(drawn_from(texts, "other text", text))
        absent = sorted({word for word in candidates if word.lower() not in present})
        for choices, answer in ((words, "Yes"), (absent, "No")):
            if choices:
                wording = drawn_from(wordings, "mention wording", text, answer)
                word = drawn_from(choices, "mention", text, answer)
                yield Item("mentions", text, _closed(wording, word), answer)


def latentqa_examples(folder: Path) -> Iterator[Item]:
    """Yield the questions of LatentQA (arXiv 2412.08686) from a folder with its JSON files.

    ``*qa.json`` maps a label to questions with answers; every other file lists rows with a label
    and what the subject reads: a system or control prompt, and the user's message.
    """
    answers: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(folder.glob("*qa.json")):
        with read_faults(path):
            answers |= _ANSWERS.validate_json(path.read_bytes())
    if not answers:
        raise UserError(f"{folder} has no file *qa.json: give the folder with LatentQA's files.")
    for path in sorted(set(folder.glob("*.json")) - set(folder.glob("*qa.json"))):
        with read_faults(path):
            rows = _BEHAVIOURS.validate_json(path.read_bytes())
        for row in rows:
            parts = (row.system, row.control_user, row.stimulus_user)
            text = "\n\n".join(part.strip() for part in parts if part)
            for question, answer in answers.get(row.label, []):
                yield Item("latentqa", text, question, answer, kind="open")


def plain_texts(source: str, most: int) -> list[str]:
    """Return up to ``most`` texts, each once: of a file, or of a Hub data set as it is streamed.

    A ``.txt`` file holds a text in each paragraph, ``.jsonl`` and ``.jsonl.zst`` one in the column
    ``text`` of each row. Raises UserError for a source that is empty or not UTF-8.
    """
    found: dict[str, None] = {}
    texts = _paragraphs(source) if source.endswith(".txt") else (t for t, _ in _objects(source))
    for text in texts:
        found[text] = None
        if len(found) == most:
            break
    if not found:
        raise UserError(f"{source} holds no texts: rows need a column 'text'.")
    return list(found)


def _paragraphs(source: str) -> Iterable[str]:
    try:
        whole = Path(source).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 (byte {error.start}): convert it first.") from error
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}.") from error
    return filter(None, map(str.strip, re.split(r"\n\s*\n", whole)))


def _objects(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows that have a text, with it; a line that cannot be read is an error."""
    rows = _unpacked(source) if source.endswith(".zst") else read_rows(source, streaming=True)
    for number, row in rows:
        if isinstance(row, ValueError):
            raise UserError(f"row {number} of {source} cannot be read: {row}.") from row
        text = row.get("text") if isinstance(row, dict) else None
        if isinstance(text, str) and text.strip():
            yield text.strip(), row


def _unpacked(source: str) -> Iterator[tuple[int, Any]]:
    try:
        with pyarrow.input_stream(source, compression="zstd") as stream:
            yield from parse_jsonl(BufferedReader(stream))
    except OSError as error:
        raise UserError(f"{source} cannot be read as zstd: {error}.") from error


def _wordings(every: Sequence[str], taught: bool) -> Sequence[str]:
    return every[_TAUGHT if taught else _UNTAUGHT]


def _closed(wording: str, word: str) -> str:
    return INSTRUCTION + wording.replace("{}", word)
