"""What the words of a question ask for, and what those of an answer say."""

import re

from grpo_ao.probe import QuestionKind

# A number's minus and what tells C++ and C# from C are part of the word.
_WORD = re.compile(r"(?:(?<![\w)\]])-(?=\d))?\w+(?:'\w+)*(?:(?:\+\+|#)(?!\w))?")
ARTICLES = {"a", "an", "the"}
_PLAIN = str.maketrans("\u2019\u2212", "'-")
# A question that opens with an auxiliary verb asks for yes or no, unless it offers a choice.
_AUXILIARY = re.compile(
    r"(is|are|was|were|am|do|does|did|has|have|had|can|could|will|would|should|may|might|must)\b",
    re.IGNORECASE,
)
_ORDER = re.compile(r"answer\s+only\s+with\s+yes\s+or\s+no", re.IGNORECASE)


def question_kind(question: str) -> QuestionKind:
    """Tell a yes/no question from an open one by its words.

    Closed: it says "answer only with yes or no", or opens with an auxiliary verb and offers no
    choice ("formal or casual").
    """
    if _ORDER.search(question):
        return "closed"
    opens = _AUXILIARY.match(question.strip()) is not None
    return "closed" if opens and " or " not in question.lower() else "open"


def all_words(text: str) -> list[str]:
    """Return a text's words, lower-cased, without punctuation."""
    return _WORD.findall(text.lower().translate(_PLAIN))


def words(answer: str) -> list[str]:
    """Return an answer's words without articles.

    Where there are articles alone ("A" of a choice of letters) they are its words.
    """
    found = all_words(answer)
    return [word for word in found if word not in ARTICLES] or found


def yes_or_no(answer: str) -> str | None:
    """Return the answer that is given, ``Yes`` or ``No``, matched as a whole word.

    ``None`` if neither word is said, or both are: "I know" says neither.
    """
    found = {"yes", "no"} & set(words(answer))
    return found.pop().capitalize() if len(found) == 1 else None


def say_the_same(first: str, second: str, kind: QuestionKind) -> bool:
    """Say whether two answers to a question agree: in Yes or No, or else in all their words."""
    if kind == "closed" and yes_or_no(first):
        return yes_or_no(first) == yes_or_no(second)
    return words(first) == words(second)
