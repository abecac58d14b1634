"""What a language model is asked for questions about a text, and how its reply is read."""

import hashlib
import json
import random
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

from grpo_ao.chat import Connection, EndpointError
from grpo_ao.chat_completion import ReplyError, Usage, content_of, usage_of
from grpo_ao.judges.sanitise import sanitise
from grpo_ao.probes.filters import wrong_language
from grpo_ao.probes.rows import parse_row
from grpo_ao.probes.sources import SourceText
from grpo_ao.wording import question_kind

CLOSED = {"yes": "Yes", "no": "No"}
CLOSED_EACH = 2
OPEN = ("topic", "intent", "emotion", "inference")
_LONGEST_QUESTION, _LONGEST_ANSWER = 300, 200
_REPLY = (
    "Reply with one JSON object and nothing else, no code fence: "
    '{"language": "...", "yes": ["...", "..."], "no": ["...", "..."], '
    + ", ".join(f'"{name}": {{"question": "...", "answer": "..."}}' for name in OPEN)
    + "}."
)
_PROMPT = Template((files("grpo_ao.probes") / "questions_prompt.txt").read_text(encoding="utf-8"))

_TEXT = {"type": "string"}
_PAIR = {
    "type": "object",
    "properties": {"question": _TEXT, "answer": _TEXT},
    "required": ["question", "answer"],
    "additionalProperties": False,
}
_PARTS: dict[str, Any] = {
    "language": _TEXT,
    **{name: {"type": "array", "items": _TEXT} for name in CLOSED},
    **dict.fromkeys(OPEN, _PAIR),
}
SCHEMA = {
    "type": "object",
    "properties": _PARTS,
    "required": list(_PARTS),
    "additionalProperties": False,
}


def prompt_version() -> str:
    """Return a digest of what is asked: questions of another prompt are another set."""
    return hashlib.sha256((_PROMPT.template + _REPLY).encode()).hexdigest()[:8]


def questions_prompt(text: str) -> str:
    """Write the one user turn that asks for the questions about a text."""
    return _PROMPT.substitute(text=sanitise("text", text), reply=_REPLY).strip()


class Outcome(NamedTuple):
    """What came of one text: a row, or the reason why there is none, and what that took.

    ``failure`` is what the endpoint did wrong where it is at fault: asking again may help.
    """

    row: dict[str, Any] | None
    reason: str | None
    usage: Usage
    failure: EndpointError | None = None


async def write_questions(
    connection: Connection, source: SourceText, language: str | None
) -> Outcome:
    """Ask for the questions about a text, once more if the reply is not what was asked for."""
    prompt, spent, reason = questions_prompt(source.text), Usage(), ""
    for attempt in range(2):
        refused = f" An earlier reply was refused: {reason}." if attempt else ""
        try:
            completion = await connection.complete(prompt + refused, SCHEMA)
            spent = spent.plus(usage_of(completion))
            row = parse_questions(content_of(completion), source)
        except ReplyError as error:
            reason = str(error)
        except EndpointError as failure:
            return Outcome(None, str(failure), spent, failure)
        else:
            unwanted = wrong_language(row["language"], language)
            return Outcome(None if unwanted else row, unwanted, spent)
    return Outcome(None, f"the model's reply was refused twice: {reason}", spent)


def parse_questions(content: str, source: SourceText) -> dict[str, Any]:
    """Return the row that a reply holds; ReplyError, with the reason, unless it is as asked for.

    The order of a row's questions is drawn by a hash of the text: it tells nothing of the answers.
    """
    try:
        reply = json.loads(content, object_pairs_hook=_distinct)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ReplyError("it is not one JSON object") from error
    if not isinstance(reply, dict) or reply.keys() != _PARTS.keys():
        raise ReplyError(f"it is not an object with exactly the keys {', '.join(_PARTS)}")
    asked = [*_closed(reply), *_open(reply)]
    if len({question.casefold() for question, _, _ in asked}) < len(asked):
        raise ReplyError("two questions are the same")
    random.Random(f"questions {source.text}").shuffle(asked)
    questions, kinds, answers = zip(*asked, strict=True)
    row = {
        "wildchat_question": source.text,
        "language": (source.language or _text(reply["language"], "language", 40)).lower(),
        "oracle_questions": list(questions),
        "question_kinds": list(kinds),
        "reference_answers": list(answers),
        "idx": source.number,
    }
    try:
        parse_row(row)
    except ValueError as error:
        raise ReplyError(str(error)) from error
    return row


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ReplyError("a key is given twice")
    return found


def _closed(reply: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = []
    for name, answer in CLOSED.items():
        questions = reply[name]
        if not isinstance(questions, list) or len(questions) != CLOSED_EACH:
            raise ReplyError(f"'{name}' is not a list of {CLOSED_EACH} questions")
        for value in questions:
            question = _question(value, name)
            if question_kind(question) != "closed":
                raise ReplyError(f"'{name}' holds {question!r}, which is no yes/no question")
            found.append((question, "closed", answer))
    return found


def _open(reply: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = []
    for name in OPEN:
        pair = reply[name]
        if not isinstance(pair, dict) or pair.keys() != {"question", "answer"}:
            raise ReplyError(f"'{name}' is not an object of question and answer")
        question = _question(pair["question"], name)
        if question_kind(question) != "open":
            raise ReplyError(f"'{name}' holds {question!r}, which is a yes/no question")
        found.append((question, "open", _text(pair["answer"], name, _LONGEST_ANSWER)))
    return found


def _question(value: Any, name: str) -> str:
    question = _text(value, name, _LONGEST_QUESTION)
    if not question.endswith("?"):
        raise ReplyError(f"'{name}' holds {question!r}, which does not end with a question mark")
    return question


def _text(value: Any, name: str, longest: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ReplyError(f"'{name}' holds no text where one was asked for")
    if len(value) > longest:
        raise ReplyError(f"'{name}' holds {len(value)} characters, more than {longest}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ReplyError(f"'{name}' holds half of a surrogate pair") from error
    return " ".join(value.split())
