from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ao import probe as module
from grpo_ao.probe import (
    Positions,
    Probe,
    kept_for_calibration,
    split_of,
    stable_hash,
    text_key,
    unit_draw,
)

PROBE = Probe(
    "It is late.", "Is it late?", "closed", (18,), Positions.parse("last:20"), "Yes", "time"
)


def test_the_id_is_this_one_for_ever():
    # printf 'It is late.\x1fIs it late?\x1f18\x1flast:20' | sha256sum
    assert PROBE.id == "57858e4e83073e1c"
    assert replace(PROBE, positions=Positions.parse("token@-3")).id == "e3678351efb7ec1f"


@pytest.mark.parametrize(
    "change",
    [
        {"text": "It is late"},
        {"question": "Is it late? "},
        {"layers": (9,)},
        {"layers": (9, 18)},
        {"positions": Positions.parse("last:19")},
        {"positions": Positions.parse("window:20@-1")},
    ],
)
def test_the_id_changes_with_text_question_layer_and_positions(change):
    assert replace(PROBE, **change).id != PROBE.id


@pytest.mark.parametrize("change", [{"kind": "open"}, {"reference": None}, {"family": "other"}])
def test_the_id_does_not_change_with_what_the_oracle_cannot_see(change):
    assert replace(PROBE, **change).id == PROBE.id


def test_hashes_are_of_utf8_and_of_the_parts_apart():
    # printf 'Zürich' | sha256sum
    assert stable_hash("Zürich") == "4251685e06cab635"
    assert stable_hash("ab", "c") != stable_hash("a", "bc")


@given(st.lists(st.text(st.characters()), min_size=1, max_size=3))
def test_hashes_and_draws_of_any_text(parts):
    assert len(stable_hash(*parts)) == 16
    assert 0 <= unit_draw(*parts) < 1
    assert unit_draw(*parts) == unit_draw(*parts)


def test_lone_surrogates_are_hashed_too():
    assert stable_hash("\ud800") != stable_hash("\ud801")


def test_draws_are_the_hash_as_a_fraction():
    # 28866251abff479c is the hash of "split", "It is late."
    assert unit_draw("split", "It is late.") == pytest.approx(0x28866251ABFF479C / 2**64)


def test_the_largest_hash_is_drawn_below_1(monkeypatch):
    monkeypatch.setattr(module, "stable_hash", lambda *_: "f" * 16)
    assert unit_draw("x") < 1


def test_draws_are_uniform():
    tenths = Counter(int(unit_draw("x", str(i)) * 10) for i in range(10_000))
    # Each tenth has 1000 of them, with a standard deviation of 30.
    assert all(abs(tenths[tenth] - 1000) < 120 for tenth in range(10))


def test_a_text_is_trained_on_chooses_constants_or_is_reported_on_by_its_draw():
    # printf 'split\x1fIt is late.' | sha256sum starts with 2886625, a draw of .158.
    assert split_of("It is late.") == "heldout"
    draws = {text: unit_draw("split", text) for text in (f"text {i}" for i in range(10_000))}
    split = {text: split_of(text) for text in draws}
    assert {split[t] for t, draw in draws.items() if draw < 0.2} == {"heldout"}
    assert {split[t] for t, draw in draws.items() if 0.2 <= draw < 0.3} == {"validation"}
    assert {split[t] for t, draw in draws.items() if draw >= 0.3} == {"train"}


TWINS = [
    "Z\u00fcrich is near.\nCome.",
    "Zu\u0308rich is near.\r\nCome.",
    "  Zürich  is near. Come. ",
]


def test_twins_share_a_key_and_others_do_not():
    assert {text_key(twin) for twin in TWINS} == {"Zürich is near. Come."}
    assert text_key("zürich is near. come.") != text_key("Zürich is near. Come.")


@given(st.text(st.characters()), st.sampled_from([" ", "\n", "\r\n", "\t"]))
def test_white_space_around_and_between_words_changes_no_split(text, space):
    twin = space + space.join(text.split()) + space
    assert split_of(twin) == split_of(text)
    assert kept_for_calibration(twin, 0.5) == kept_for_calibration(text, 0.5)


def test_what_is_kept_for_calibration_is_a_share_of_every_split():
    for split in ("train", "validation", "heldout"):
        texts = [t for t in (f"text {i}" for i in range(20_000)) if split_of(t) == split]
        kept = sum(kept_for_calibration(text, 0.3) for text in texts)
        assert kept / len(texts) == pytest.approx(0.3, abs=0.04)
