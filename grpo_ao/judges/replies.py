"""Read a grade in a judge's reply, strictly."""

import json
from typing import Any

from grpo_ao.chat_completion import ReplyError
from grpo_ao.judges.rubric import GRADES
from grpo_ao.probe import QuestionKind

JSON_REPLY = (
    'Reply with one JSON object and nothing else, no code fence and no reason: {"grade": "X"}, '
    "where X is the letter of the grade."
)
JSON_REMINDER = (
    " An earlier reply was not of this form: the whole reply must be that one JSON object."
)
# A grade has under 20 characters; some models indent it. More than this cannot be one.
_LONGEST = 200


def grade_schema(kind: QuestionKind) -> dict[str, Any]:
    """Return the JSON schema of a grade. An enum of strings is what every endpoint can do."""
    return {
        "type": "object",
        "properties": {"grade": {"type": "string", "enum": list(GRADES[kind])}},
        "required": ["grade"],
        "additionalProperties": False,
    }


def parse_grade(content: str, kind: QuestionKind) -> float:
    """Return the score of a reply that is exactly a grade; ReplyError for anything else.

    White space around the object is allowed; prose, a code fence, another key, a key given twice
    and a letter that this kind of question does not have are not.
    """
    if len(content) > _LONGEST:
        raise ReplyError(f"the reply has {len(content)} characters, which no grade has")
    try:
        # Pairs, so that a key given twice is seen: dict would keep the second.
        pairs = json.loads(content, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise ReplyError("the reply is not one JSON object") from error
    match pairs:
        case tuple([("grade", str(letter))]) if letter in GRADES[kind]:
            return GRADES[kind][letter]
    raise ReplyError(f"the reply is not a grade of {', '.join(GRADES[kind])}")
