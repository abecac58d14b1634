import re

import pytest
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
