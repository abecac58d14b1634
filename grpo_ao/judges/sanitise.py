"""Make what a judge, or whoever writes questions, reads about plain data: above all answers.

The oracle is trained against the judge, so whatever in an answer moves the judge without being
right will be found.
"""

import re
import unicodedata
from typing import Literal

from grpo_ao.judges.redaction import without_confidence

Field = Literal["text", "question", "answer"]

MAX_CHARACTERS: dict[Field, int] = {"text": 12_000, "question": 1_000, "answer": 2_000}
# Chat templates and this project's delimiters are written in angle brackets: <|im_start|>,
# <start_of_turn>, </s>, <think>, </answer>. In data single guillemets stand in their place, also
# in that of what looks like them.
_ANGLES = str.maketrans(
    "<>\u02c2\u02c3\u1438\u1433\u2329\u232a\u276c\u276d\u276e\u276f\u2770\u2771\u27e8\u27e9\u2991\u2992"
    "\u29fc\u29fd\u3008\u3009\ufe3f\ufe40",
    "\u2039\u203a" * 12,
)
_SYNTAX = set("<>[]{}|")  # looked for in compatible forms too: full-width, small, vertical
# A judge that echoes an answer must not have said a grade: a grade is a JSON object.
_BRACES = str.maketrans("{}", "()")
# The control tokens in square brackets: [INST], [/INST], [TOOL_CALLS], [gMASK], [|user|].
_BRACKET_TOKEN = re.compile(r"\[(/?[A-Za-z_]{0,20}[A-Z]{2}[A-Z0-9_]{0,40}|\|[^\[\]\n]{0,40}\|)\]")
_MANY_NEWLINES = re.compile(r"\n{3,}")


def sanitise(field: Field, data: str) -> str:
    """Return ``data`` as it may stand in a judge's prompt.

    Control, format and private characters are dropped (bidirectional overrides, zero-width and tag
    characters among them), lone surrogates become U+FFFD. Angle brackets become single guillemets,
    and so do the square brackets of a control token. The answer also loses any confidence that is
    stated in it, and its braces become parentheses. What is longer than ``MAX_CHARACTERS[field]``
    is cut, an answer at its end, text and question in the middle, with a note in the place of what
    is left out.
    """
    plain = "".join(_visible(character) for character in data.replace("\r\n", "\n"))
    plain = _BRACKET_TOKEN.sub("\u2039\\1\u203a", plain.translate(_ANGLES))
    if field == "answer":
        plain = without_confidence(plain).translate(_BRACES)
    return _cut(field, _MANY_NEWLINES.sub("\n\n", plain).strip())


def _visible(character: str) -> str:
    if character in "\n\t":
        return character
    if character in "\r\u2028\u2029":
        return "\n"
    if (plain := unicodedata.normalize("NFKC", character)) in _SYNTAX:
        return plain
    category = unicodedata.category(character)
    if category == "Cs":
        return "\ufffd"
    return "" if category in ("Cc", "Cf", "Co") else character


def _cut(field: Field, data: str) -> str:
    excess = len(data) - MAX_CHARACTERS[field]
    if excess <= 0:
        return data
    note = f" [... {excess} characters left out] "
    if field == "answer":
        return data[: MAX_CHARACTERS[field]] + note.rstrip()
    half = MAX_CHARACTERS[field] // 2
    return data[:half] + note + data[half + excess :]
