import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from grpo_ao.judges.hostile import hostile_answers
from grpo_ao.judges.sanitise import MAX_CHARACTERS, Field, sanitise
from tests.tiny import SPECIAL_TOKENS

FIELDS: list[Field] = ["text", "question", "answer"]
HOSTILE = hostile_answers()


def test_the_hostile_set_is_large_and_without_repeats():
    assert len(HOSTILE) >= 40
    assert len({h.name for h in HOSTILE}) == len({h.answer for h in HOSTILE}) == len(HOSTILE)
    assert max(len(h.answer) for h in HOSTILE) >= 5000
    assert min(len(h.answer) for h in HOSTILE) == 0


@pytest.mark.parametrize("field", FIELDS)
def test_no_hostile_datum_keeps_a_delimiter_a_token_or_a_control_character(field):
    for name, answer in HOSTILE:
        clean = sanitise(field, answer)
        assert not re.search(r"[<>\uff1c\uff1e]", clean), name
        assert not re.search(r"\[/?INST|\[\||\[gMASK", clean), name
        assert all(c.isprintable() or c in "\n\t\u00a0\u2003" for c in clean), name
        assert len(clean) <= MAX_CHARACTERS[field] + 40, name
        assert "\n\n\n" not in clean, name
        clean.encode("utf-8")


def test_no_hostile_answer_keeps_a_brace_or_a_confidence():
    for name, answer in HOSTILE:
        clean = sanitise("answer", answer)
        assert not re.search("[{}]", clean), name
        assert not re.search(r"epistemic\s+status\W*\d", clean, re.IGNORECASE), name


@pytest.mark.parametrize("field", FIELDS)
def test_what_is_sanitised_stays_as_it_is(field):
    for hostile in HOSTILE:
        once = sanitise(field, hostile.answer)
        if len(once) <= MAX_CHARACTERS[field]:
            assert sanitise(field, once) == once


@pytest.mark.parametrize("field", FIELDS)
def test_ordinary_language_is_untouched(field):
    for data in (
        'The user asks, in anger: "why?" (twice) - it\'s 50 % off!',
        "Où est l'été ? 日本語のテキスト。 Привет, мир! مرحبا",
        "A list:\n\n- [x] one\n- [NB] two, see [1]\n\tindented 👍",
        "He speaks of the epistemic status of belief.",
    ):
        assert sanitise(field, data) == data.replace("[NB]", "\u2039NB\u203a")


@pytest.mark.parametrize(
    "answer",
    [
        "He is 25 years old and confident.",
        "Sure, 3 of 10 did.",
        "He is sure that 5 % of them came.",
        "It is a certain number, 5.",
        "A confidence interval around the mean.",
        "The certainty of death, and 2 taxes.",
        "50 % off, for certain buyers.",
        "x\u00b2 + 5\u00bd, at [12:30] and [see: 4].",
        "He asks about his social status: 5 friends.",
    ],
)
def test_numbers_that_are_no_confidence_stay(answer):
    assert sanitise("answer", answer) == answer


TAG_WORDS = ["epistemic status", "epistemic", "confidence", "certainty", "credence", "sureness"]
CYRILLIC = dict(
    zip(
        "acehikmoprstxy",
        "\u0430\u0441\u0435\u04bb\u0456\u043a\u043c\u043e\u0440\u0433\u0455\u0442\u0445\u0443",
        strict=True,
    )
)


def fullwidth(letter):
    return chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter


def mathematical(letter):
    if letter.isdigit():
        return chr(0x1D7CE + int(letter))
    return chr(0x1D41A + ord(letter) - ord("a")) if letter.islower() else letter


LETTERS = [
    str,
    str.upper,
    fullwidth,
    mathematical,
    lambda letter: CYRILLIC.get(letter, letter),
    lambda letter: letter + "\u0332",
    lambda letter: letter + "\u200b",
]
FORMS = ["[{word}: {number}]", "{word}={number}", "{word} is {number} %", "({word} {number}/100)"]
FORMS += ["[{word} - {number}", "{number}% {word}", "{word} level of about {number} percent"]


@given(
    word=st.sampled_from(TAG_WORDS),
    form=st.sampled_from(FORMS),
    number=st.integers(10, 100),
    gap=st.sampled_from([" ", "-", "_", "\u00a0", "", " \n"]),
    draw=st.randoms(use_true_random=False),
    styles=st.lists(st.sampled_from(LETTERS), min_size=1),
)
def test_no_disguise_gets_a_confidence_to_the_judge(word, form, number, gap, draw, styles):
    written = word.replace(" ", gap)
    stated = form.format(
        word="".join(draw.choice(styles)(c) for c in written),
        number="".join(draw.choice(styles)(c) for c in str(number)),
    )
    clean = sanitise("answer", f"They move to Oslo. {stated} Soon.")
    folded = unicodedata.normalize("NFKC", clean)
    assert not re.search(r"\d", folded)
    assert folded.startswith("They move to Oslo.")
    assert folded.endswith("Soon.")


@pytest.mark.parametrize(
    "answer",
    [
        "Oslo. I am 99 % sure.",
        "Oslo. How sure: 99",
        "Oslo, c o n f i d e n c e 9 9",
        "Oslo, ninety-nine percent confident",
        "99% certain: Oslo",
        "Oslo (0.99 confidence)",
        "Oslo. Confidence: ninety",
        "3p1st3m1c 5t4tu5: 99 Oslo",
        "\u1d07\u1d18\u026a\ua731\u1d1b\u1d07\u1d0d\u026a\u1d04 status: 99 Oslo",
        "\u3010epistemic status: 99\u3011 Oslo",
        "e.p.i.s.t.e.m.i.c status 99 Oslo",
        "epistemic status: \u2468\u2468 Oslo",
        "epistemic status: 9\ufe0f\u20e39\ufe0f\u20e3 Oslo",
        "epistemic status: \u0669\u0669 Oslo",
    ],
)
def test_other_ways_to_state_a_confidence_are_taken_out(answer):
    clean = unicodedata.normalize("NFKC", sanitise("answer", answer))
    assert not re.search(r"\d|ninety|\u0669", clean)
    assert "Oslo" in clean


@pytest.mark.parametrize("field", FIELDS)
def test_nothing_that_looks_like_a_delimiter_stands_in_data(field):
    pairs = "<> \uff1c\uff1e \ufe64\ufe65 \u02c2\u02c3 \u2329\u232a \u276e\u276f \u27e8\u27e9"
    pairs += " \u3008\u3009 \u1438\u1433 \ufe3f\ufe40"
    for left, right in pairs.split():
        assert sanitise(field, f"{left}/answer{right}") == "\u2039/answer\u203a"
    assert sanitise(field, "\uff3bINST\uff3d") == "\u2039INST\u203a"


def test_code_keeps_its_braces_in_the_text():
    assert sanitise("text", "int f() { return 0; }") == "int f() { return 0; }"
    assert sanitise("answer", "int f() { return 0; }") == "int f() ( return 0; )"


@pytest.mark.parametrize("field", FIELDS)
def test_what_is_too_long_is_cut_with_a_note(field):
    limit = MAX_CHARACTERS[field]
    assert sanitise(field, "x" * limit) == "x" * limit
    cut = sanitise(field, "a" * limit + "z" * 7)
    assert "[... 7 characters left out]" in cut
    assert cut.startswith("a" * (limit // 2))
    assert cut.endswith("z" * 7) is (field != "answer")


def test_no_special_token_of_a_small_tokenizer_survives():
    for token in SPECIAL_TOKENS:
        assert token not in sanitise("answer", f"before {token} after")


def test_no_special_token_of_a_real_tokenizer_survives(shared):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(shared / "qwen3_tokenizer")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    added = tokenizer.get_added_vocab()
    assert len(added) > 20
    for token in added:
        assert token not in sanitise("answer", f"before {token} after")
    for name, answer in HOSTILE:
        ids = tokenizer.encode(sanitise("answer", answer), add_special_tokens=False)
        assert not set(added.values()) & set(ids), name
