"""The oracle's output format: ``[epistemic status: 85] The user is ...``, rendered and parsed."""

import re
from typing import NamedTuple

TAG_PREFIX = "[epistemic status: "
UNPARSED_CONFIDENCE = 50
_TAG = re.compile(r"\[\s*epistemic\s+status\s*:\s*([0-9]{1,3})\s*\]", re.IGNORECASE | re.ASCII)
_ANY_TAG = re.compile(r"\[\s*epistemic\s+status", re.IGNORECASE)


class ParsedOutput(NamedTuple):
    """Confidence (0 to 100), answer, and whether the output was well-formed."""

    confidence: int
    answer: str
    parsed: bool


def render_tag(confidence: int) -> str:
    """Write the tag of a confidence between 0 and 100."""
    if not 0 <= confidence <= 100:
        raise ValueError(f"a confidence lies between 0 and 100, got {confidence}.")
    return f"{TAG_PREFIX}{confidence}]"


def render_oracle_output(confidence: int, answer: str) -> str:
    """Write a whole output: the tag, a space, the answer."""
    return f"{render_tag(confidence)} {answer}"


def parse_oracle_output(response: str) -> ParsedOutput:
    """Read an output; never raises.

    Well-formed is: the tag at the start (white space may precede it), an integer from 0 to 100 of
    digits alone, then an answer that is not empty and holds no second tag. Case and spaces inside
    the tag do not matter. All else (a tag in the middle, 101, -3, 7.5, no answer) is not parsed:
    confidence 50, which stands for nothing, and the whole response as the answer.
    """
    stripped = response.strip()
    match = _TAG.match(stripped)
    if match is not None:
        confidence, answer = int(match[1]), stripped[match.end() :].strip()
        if confidence <= 100 and answer and not _ANY_TAG.search(answer):
            return ParsedOutput(confidence, answer, True)
    return ParsedOutput(UNPARSED_CONFIDENCE, stripped, False)
