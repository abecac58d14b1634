"""Which rows each stage asks: never the same text twice."""

from hypothesis import given
from hypothesis import strategies as st

from grpo_ao.probe import Positions, Probe
from grpo_ao.probes.division import divide, few_lessons, few_texts, shortage


def probes_about(texts):
    return [
        Probe(text, f"Is it {n}?", "closed", (2,), Positions.parse("last:3"), "Yes", "family")
        for n, text in enumerate(texts)
    ]


TWO_EACH = probes_about([f"text {n // 2}" for n in range(200)])


def test_each_stage_gets_what_it_needs_where_there_is_enough():
    warm_start, grpo = divide(TWO_EACH, 60, 100)
    assert len(warm_start) == 60
    assert sorted(warm_start + grpo) == list(range(200))


def test_of_too_little_each_stage_gets_its_share():
    warm_start, grpo = divide(TWO_EACH, 300, 100)
    assert (len(warm_start), len(grpo)) == (150, 50)


def test_a_stage_that_asks_nothing_leaves_all_to_the_other():
    assert divide(TWO_EACH, 0, 100) == ([], list(range(200)))
    assert divide(TWO_EACH, 10, 0) == (list(range(200)), [])


def test_more_questions_do_not_move_a_text_back():
    less, _ = divide(TWO_EACH, 40, 100)
    more, _ = divide(TWO_EACH, 80, 100)
    assert set(less) < set(more)


@given(
    st.lists(st.sampled_from(["a", "a ", "b", "c", "d\r\n", "d\n"]), min_size=1),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_no_text_is_asked_in_both(texts, warm_start, grpo):
    probes = probes_about(texts)
    found = divide(probes, warm_start, grpo)
    assert sorted(found[0] + found[1]) == list(range(len(probes)))
    words = [{" ".join(texts[row].split()) for row in rows} for rows in found]
    assert not words[0] & words[1]


def test_a_shortage_says_what_it_means():
    assert shortage(120, 120) is None
    said = shortage(300, 120)
    assert said is not None
    assert "GRPO asks 300 questions but has texts for 120" in said
    assert "2.5 times" in said


def test_a_warm_start_with_too_few_questions_asks_each_once():
    assert few_lessons(120, 120) is None
    said = few_lessons(300, 120)
    assert said is not None
    assert "texts for 120 of the 300 questions" in said
    assert "each once" in said


def test_few_held_out_texts_are_told_by_their_number():
    assert few_texts(probes_about([f"text {n // 2}" for n in range(60)])) is None
    assert "only 29 texts are held out" in str(few_texts(TWO_EACH[:58]))
