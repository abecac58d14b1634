"""The reference judge: answers compared with the question set's own."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from grpo_ao.errors import UserError
from grpo_ao.judges.protocol import Grade, GradeRequest
from grpo_ao.probe import Probe
from grpo_ao.wording import ARTICLES, all_words, words, yes_or_no

# Of an answer whose words are the reference's in less than this share, most is a list or filler.
_LEAST_PRECISION = 0.25


def says_neither(answer: str, reference: str | None) -> bool:
    """Say whether a question of yes or no got an answer that is neither."""
    return _is_yes_or_no(reference or "") and yes_or_no(answer) is None


def _is_yes_or_no(reference: str) -> bool:
    return words(reference) in (["yes"], ["no"])


def closed_score(answer: str, reference: str) -> float:
    """Return 1 if the answer says the reference, else 0.

    Yes and No are said by the word alone, wherever it stands, without the other. Any other
    reference is said by an answer that opens with its words, as whole words.
    """
    if _is_yes_or_no(reference):
        return float(yes_or_no(answer) == yes_or_no(reference))
    right = words(reference)
    opening = all_words(answer) if set(right) <= ARTICLES else words(answer)
    return float(bool(right) and opening[: len(right)] == right)


def open_score(answer: str, reference: str) -> float:
    """Return the F1 of the two answers' words as multisets: 1 only for the same words.

    0 where less than a quarter of the answer's words are the reference's: who lists all that might
    be asked for would be paid otherwise.
    """
    said, right = Counter(words(answer)), Counter(words(reference))
    shared = (said & right).total()
    if not shared or shared < _LEAST_PRECISION * said.total():
        return 0.0
    return 2 * shared / (said.total() + right.total())


def check_references(probes: Iterable[Probe]) -> None:
    """Raise UserError if a probe has no reference answer to be graded by."""
    missing = [probe for probe in probes if not (probe.reference or "").strip()]
    if missing:
        raise UserError(
            f"{len(missing)} questions have no reference answer (the first: "
            f"{missing[0].question!r}), so the reference judge cannot grade them: "
            "give a question set with 'reference_answers'."
        )


def named(answer: str, choices: Sequence[str]) -> str | None:
    """Return which of the choices an answer names, in whole words wherever they stand.

    None if it names none of them, or several. A choice within another that is named ("Tennis" in
    "Table tennis") does not count.
    """
    found = [choice for choice in choices if _holds(words(answer), words(choice))]
    widest = [
        choice
        for choice in found
        if not any(_holds(words(other), words(choice)) for other in found if other != choice)
    ]
    return widest[0] if len(widest) == 1 else None


def _holds(said: Sequence[str], part: Sequence[str]) -> bool:
    starts = range(len(said) - len(part) + 1)
    return any(said[start : start + len(part)] == part for start in starts)


class ReferenceJudge:
    """Grades closed answers 1 or 0, open ones by word overlap with the reference.

    Where the answers are known, one is right if it names the reference and no other of them.
    """

    identity = json.dumps({"judge": "reference", "least precision": _LEAST_PRECISION})

    async def check(self) -> None:
        """Return: it can always grade. Whether there are references, ``check_references`` says."""

    async def grade(self, requests: Sequence[GradeRequest]) -> list[Grade]:
        """Grade at once; a request without a reference is None, with the reason."""
        return [_grade(request) for request in requests]


def _grade(request: GradeRequest) -> Grade:
    if request.reference is None or not request.reference.strip():
        return Grade(None, "the question has no reference answer")
    if request.choices:
        return Grade(float(named(request.answer, request.choices) == request.reference))
    score = closed_score if request.kind == "closed" else open_score
    return Grade(score(request.answer, request.reference))
