"""Take a stated confidence out of an answer, whatever letters and digits it is written in.

The judge must not see it: a grade that follows the stated number teaches the oracle to please.
"""

import re
import unicodedata

_LEFT_OUT = "[...]"
# Letters of other alphabets that look like Latin ones; NFKD takes care of mathematical, full-width,
# circled and accented letters and digits.
_LOOKALIKES = str.maketrans(
    "\u0430\u0432\u0441\u0501\u0435\u0493\u04bb\u0456\u0458\u043a\u04cf\u043c\u043f\u043e\u0440\u0433\u0455"
    "\u0442\u0446\u0475\u0445\u0443\u03b1\u03f2\u03b5\u03b7\u03b9\u03ba\u03bc\u03bd\u03bf\u03c1\u03c3\u03c2"
    "\u03c4\u03c5\u03c7\u057d\u0578\u0585\u0570\u0131\u0269\u0251\u1d00\u1d04\u1d05\u1d07\ua730\u026a\u1d0d"
    "\u0274\u1d0f\u1d18\u0280\ua731\u1d1b\u1d1c\u028f",
    "abcdefhijklmnoprstuvxyacenikmvopsstuxunohiiaacdefimnoprstuy",
)
_FORMS = {"e": "e3", "i": "i1l!|", "s": "s5$", "t": "t7", "a": "a@4", "o": "o0"}
_GAP = r"[\W_]{0,3}"


def _spelled(word: str) -> str:
    return _GAP.join(f"[{re.escape(_FORMS.get(letter, letter))}]" for letter in word)


_TAG = f"{_spelled('epistemic')}[\\W_]*{_spelled('status')}"
_NOUNS = ("epistemic", "confidence", "certainty", "credence", "sureness")
_NOUN = rf"(?:{_TAG}|{'|'.join(map(_spelled, _NOUNS))})"
_ADJECTIVE = rf"(?:{_spelled('confident')}|\bcertain\b|\bsure\b)"
_TENS = "ten|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred"
_ONES = "zero|one|two|three|four|five|six|seven|eight|nine"
_NUMBER = (
    rf"(?:[.]?\d(?:[\d.,]|\s(?=\d))*|\b(?:{_TENS}|{_ONES})\b(?:[\W_]*\b(?:{_ONES}|hundred)\b)?)"
)
_UNIT = r"\s*(?:%|per\s?cent\b|/\s?10+\b|out\s+of\s+10+\b|out\s+of\s+a\s+hundred\b)"
_BETWEEN = r"(?:[\W_]+(?:level|score|rating|is|of|at|about|around|in|this|to|by|with)\b){0,3}"
_STATED = re.compile(
    rf"\[[\W_]*{_TAG}[^\[\]\n]{{0,40}}\]"
    rf"|{_NOUN}{_BETWEEN}[\W_]{{0,5}}{_NUMBER}(?:{_UNIT})?"
    rf"|{_ADJECTIVE}{_BETWEEN}[\W_]{{0,5}}{_NUMBER}{_UNIT}"
    rf"|{_ADJECTIVE}\s?[:=]\s?{_NUMBER}(?:{_UNIT})?"
    rf"|{_NUMBER}{_UNIT}{_BETWEEN}[\W_]{{0,5}}(?:{_NOUN}|{_ADJECTIVE})"
    rf"|[01]?\.\d+[\W_]{{0,3}}{_NOUN}"
)


def without_confidence(answer: str) -> str:
    """Return an answer with "[...]" in the place of each confidence that it states.

    A confidence is the tag, whole or broken, or a number beside "confidence", "certainty",
    "credence", "sureness" or "epistemic"; beside "confident", "certain" or "sure" it is a number
    with "%", "percent" or "out of 100", or behind a colon. A number without such a word is the
    answer's own.
    """
    while True:
        folded, origin = _folded(answer)
        match = _STATED.search(folded)
        if match is None:
            return answer
        start, end = origin[match.start()], origin[match.end() - 1] + 1
        # Half of a letter's own marks would stay behind.
        while end < len(answer) and unicodedata.category(answer[end]).startswith("M"):
            end += 1
        answer = answer[:start] + _LEFT_OUT + answer[end:]


def _folded(answer: str) -> tuple[str, list[int]]:
    """Return an answer as plain Latin letters and digits would write it, and where each is from."""
    letters: list[str] = []
    origin: list[int] = []
    for index, character in enumerate(answer):
        plain = unicodedata.normalize("NFKD", character).casefold().translate(_LOOKALIKES)
        for letter in plain:
            if not unicodedata.category(letter).startswith("M"):
                letters.append(str(unicodedata.digit(letter, letter)))
                origin.append(index)
    return "".join(letters), origin
