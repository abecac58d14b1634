"""The oracle's output format: ``[epistemic status: 85] The user is ...``, rendered and parsed."""

import re
from typing import NamedTuple

TAG_PREFIX = "[epistemic status: "
_TAG = re.compile(r"\[\s*epistemic\s+status\s*:\s*([0-9]{1,3})\s*\]", re.IGNORECASE | re.ASCII)
_ANY_TAG = re.compile(r"\[\s*epistemic\s+status", re.IGNORECASE)


class ParsedOutput(NamedTuple):
    """The stated confidence in [0, 1], None where the output is not well-formed; the answer."""

    confidence: float | None
    answer: str


def render_tag(number: int) -> str:
    """Write the tag with its number, a confidence in per cent."""
    if not 0 <= number <= 100:
        raise ValueError(f"the tag's number lies between 0 and 100, got {number}.")
    return f"{TAG_PREFIX}{number}]"


def render_oracle_output(number: int, answer: str) -> str:
    """Write a whole output: the tag, a space, the answer."""
    return f"{render_tag(number)} {answer}"


def parse_oracle_output(response: str) -> ParsedOutput:
    """Read an output; never raises.

    Well-formed is: the tag at the start (white space may precede it), an integer from 0 to 100 of
    digits alone, then an answer that is not empty and holds no second tag. Case and spaces inside
    the tag do not matter. All else (a tag in the middle, 101, -3, 7.5, no answer) states no
    confidence, and the whole response is the answer.
    """
    stripped = response.strip()
    match = _TAG.match(stripped)
    if match is not None:
        number, answer = int(match[1]), stripped[match.end() :].strip()
        if number <= 100 and answer and not _ANY_TAG.search(answer):
            return ParsedOutput(number / 100, answer)
    return ParsedOutput(None, stripped)
