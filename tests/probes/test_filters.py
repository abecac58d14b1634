import random
import string

import pytest

from grpo_ao.probes.filters import NearDuplicates, TextFilter, TextRules
from grpo_ao.probes.sources import SourceText

RULES = TextRules(language="english", min_characters=10, max_characters=300, allow_toxic=False)
LONG = "My neighbour borrowed my ladder in May and still has not brought it back to me. "
TEXT = LONG + "How do I ask for it politely, without starting a quarrel over something so small?"


def source(number, text=TEXT, language: str | None = "English", toxic=False):
    return SourceText(number, text, language, toxic)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (source(1), None),
        (source(1, language=None), None),
        (source(1, language="ENGLISH"), None),
        (source(1, language="French"), "its language is French, not english"),
        (source(1, "x" * 9), "it has 9 characters"),
        (source(1, "x" * 10), None),
        (source(1, "x" * 300), None),
        (source(1, "x" * 301), "it has 301 characters"),
        (source(1, toxic=True), "its source flags it as toxic"),
    ],
)
def test_language_length_and_toxicity(text, reason):
    assert TextFilter(RULES).reason(text) == reason


def test_what_is_allowed_passes():
    rules = TextRules(None, 1, 1000, allow_toxic=True)
    assert TextFilter(rules).reason(source(1, language="French", toxic=True)) is None


def test_exact_duplicates_are_found_apart_from_case_and_spaces():
    filters = TextFilter(RULES)
    assert filters.reason(source(4)) is None
    assert filters.reason(source(9, TEXT.upper().replace(" ", "\n "))) == (
        "it is the text of row 4 again"
    )


def test_near_duplicates_are_found_and_a_text_left_out_is_no_rival():
    filters = TextFilter(RULES)
    assert filters.reason(source(1, TEXT + " x" * 100)) == f"it has {len(TEXT) + 200} characters"
    assert filters.reason(source(2)) is None
    assert (
        filters.reason(source(3, TEXT.replace("May", "June"))) == "it is nearly the text of row 2"
    )
    assert filters.reason(source(4, LONG + "Is it rude to simply go over and take it?")) is None


def random_text(rng, length):
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(length))


def test_similarity_is_what_decides():
    """Texts that share a part of their runs of five characters, over and under .8."""
    rng = random.Random(0)
    found = {0.95: 0, 0.6: 0}
    for share in found:
        for _ in range(50):
            near, base = NearDuplicates(), random_text(rng, 400)
            assert near.add(1, base) is None
            # Two texts of n runs each with k in common: Jaccard k / (2n - k).
            kept = round(400 * 2 * share / (1 + share))
            found[share] += near.add(2, base[:kept] + random_text(rng, 400 - kept)) == 1
    assert found == {0.95: 50, 0.6: 0}


def test_short_texts_and_other_scripts_are_compared_too():
    near = NearDuplicates()
    texts = ["a", "b", "a", "日本語のテキスト", "日本語のテキスト"]
    assert [near.add(n, text) for n, text in enumerate(texts)] == [None, None, 0, None, 3]
