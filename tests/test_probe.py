from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ao import probe as module
from grpo_ao.probe import Positions, Probe, split_of, stable_hash, unit_draw

PROBE = Probe("It is late.", "Is it late?", "closed", 18, Positions.parse("last:20"), "Yes", "time")


def test_the_id_is_this_one_for_ever():
    # printf 'It is late.\x1fIs it late?\x1f18\x1flast:20' | sha256sum
    assert PROBE.id == "57858e4e83073e1c"
    assert replace(PROBE, positions=Positions.parse("token@-3")).id == "e3678351efb7ec1f"


@pytest.mark.parametrize(
    "change",
    [
        {"text": "It is late"},
        {"question": "Is it late? "},
        {"layer": 9},
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


def test_the_split_compares_the_texts_draw_with_the_share():
    # The draw of this text is .158.
    assert split_of("It is late.", 0.15) == "train"
    assert split_of("It is late.", 0.16) == "heldout"


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_only_adds_texts_to_the_held_out(text, one, other):
    small, large = sorted((one, other))
    assert split_of(text, large) == "heldout" or split_of(text, small) == "train"
    assert split_of(text, 0.0) == "train"
    assert split_of(text, 1.0) == "heldout"


def test_the_held_out_share_is_the_one_asked_for():
    heldout = sum(split_of(f"text {i}", 0.1) == "heldout" for i in range(10_000))
    assert heldout == pytest.approx(1000, abs=120)
