"""The rubric: what a judge is told, and what its grades are worth.

The texts lie beside this file, one folder a version. Grades are letters, so that a score written
into an answer ("Score: 1.0", "10/10") is not even of the judge's format.
"""

import hashlib
from importlib.resources import files
from string import Template

from grpo_ao.judges.protocol import GradeRequest
from grpo_ao.judges.sanitise import sanitise
from grpo_ao.probe import QuestionKind

VERSION = "v1"
GRADES: dict[QuestionKind, dict[str, float]] = {
    "closed": {"A": 1.0, "E": 0.0},
    "open": {"A": 1.0, "B": 0.75, "C": 0.5, "D": 0.25, "E": 0.0},
}
TRIAL = GradeRequest("The cat sleeps.", "Is the text about an animal?", "Yes.", "closed", None)
"""What a judge is tried with."""


def _read(name: str) -> str:
    return (files(__name__) / VERSION / name).read_text(encoding="utf-8").strip()


_RUBRICS: dict[QuestionKind, str] = {"closed": _read("closed.txt"), "open": _read("open.txt")}
_PROMPT = Template(_read("prompt.txt"))


def rubric_version() -> str:
    """Return the version and a digest of its texts: an edit makes another version by itself."""
    texts = "\x1f".join([_RUBRICS["closed"], _RUBRICS["open"], _PROMPT.template])
    return f"{VERSION}-{hashlib.sha256(texts.encode()).hexdigest()[:8]}"


def judge_prompt(request: GradeRequest, reply: str) -> str:
    """Write the one user turn that a judge reads; ``reply`` says how it is to answer.

    One turn, because not every chat template has a system role. Text, question and answer are
    sanitised, so that the delimiters around them occur nowhere else, and filled in at once, so
    that ``$answer`` in a text is not taken for a slot. The constant part comes first, then the
    text: endpoints that cache prefixes read both once for many answers.
    """
    return _PROMPT.substitute(
        rubric=_RUBRICS[request.kind],
        text=sanitise("text", request.text),
        question=sanitise("question", request.question),
        answer=sanitise("answer", request.answer),
        reply=reply,
    )
