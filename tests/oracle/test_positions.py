import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ao.probe import Positions


def test_last_k_ends_at_the_last_token():
    assert list(Positions.parse("last:3").select(10)) == [7, 8, 9]


def test_single_token_counts_from_the_end():
    assert list(Positions.parse("token@-3").select(10)) == [7]


def test_window_ends_at_its_offset():
    assert list(Positions.parse("window:4@-2").select(10)) == [5, 6, 7, 8]


@pytest.mark.parametrize("spec", ["window:50@-1", "last:50"])
def test_a_run_is_cut_where_the_text_begins(spec):
    assert list(Positions.parse(spec).select(6)) == [0, 1, 2, 3, 4, 5]
    assert list(Positions.parse(spec).select(6, start=4)) == [4, 5]


def test_a_window_is_cut_and_ends_at_its_offset():
    assert list(Positions.parse("window:50@-3").select(6)) == [0, 1, 2, 3]


def test_all_reads_every_token_of_the_text():
    assert list(Positions.parse("all").select(4)) == [0, 1, 2, 3]
    assert list(Positions.parse("all").select(4, start=1)) == [1, 2, 3]


@pytest.mark.parametrize("spec", ["token@-5", "window:3@-5"])
def test_an_offset_before_the_text_is_an_error_that_names_both(spec):
    with pytest.raises(ValueError, match=rf"have 4 tokens.*'{spec}'"):
        Positions.parse(spec).select(10, start=6)


@pytest.mark.parametrize("spec", ["", "last", "last:-3", "last:x", "token@3", "window:5", "20"])
def test_an_unreadable_spec_is_refused_with_the_forms(spec):
    with pytest.raises(ValueError, match="last:K"):
        Positions.parse(spec)


def test_zero_positions_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Positions.parse("last:0")


def test_an_offset_that_does_not_count_from_the_end_is_refused():
    with pytest.raises(ValueError, match="negative"):
        Positions(3, end_offset=0)


@given(
    st.one_of(
        st.just("all"),
        st.integers(2, 99).map("last:{}".format),
        st.integers(-99, -1).map("token@{}".format),
        st.tuples(st.integers(1, 99), st.integers(-9, -1)).map(lambda p: f"window:{p[0]}@{p[1]}"),
    )
)
def test_writing_a_spec_gives_what_was_read(spec):
    assert str(Positions.parse(spec)) == spec


@given(st.integers(1, 60), st.integers(-20, -1), st.integers(1, 80), st.integers(0, 30))
def test_what_is_read_is_a_run_within_the_text_that_ends_at_the_offset(count, offset, text, start):
    positions, length = Positions(count, offset, window=True), start + text
    if text + offset < 0:
        with pytest.raises(ValueError):
            positions.select(length, start)
        return
    chosen = list(positions.select(length, start))
    assert chosen[-1] == length + offset
    assert chosen == list(range(chosen[0], chosen[-1] + 1))
    assert len(chosen) == min(count, text + offset + 1)
