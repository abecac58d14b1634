import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ao.judges.protocol import Grade, GradeRequest, Judge
from grpo_ao.judges.reference import (
    ReferenceJudge,
    check_references,
    closed_score,
    named,
    open_score,
    says_neither,
)
from grpo_ao.probe import Positions, Probe, QuestionKind
from grpo_ao.wording import words


def request(answer: str, reference: str | None, kind: QuestionKind = "closed") -> GradeRequest:
    return GradeRequest("A text.", "A question?", answer, kind, reference)


def grade(*requests: GradeRequest) -> list[Grade]:
    return asyncio.run(ReferenceJudge().grade(requests))


@pytest.mark.parametrize(
    "answer",
    [
        *("Yes", "yes.", " YES!", "Yes, they are.", "Yes - the user is moving", "'Yes'"),
        *("**Yes**, so", "I think yes"),
    ],
)
def test_an_answer_that_says_yes_alone_is_a_yes(answer):
    assert closed_score(answer, "Yes") == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("I know", "No"),
        ("Nobody is", "No"),
        ("Not at all", "No"),
        ("Yesterday", "Yes"),
        ("No", "Yes"),
        ("", "Yes"),
        ("?", "No"),
        ("yes", ""),
        ("the", "a"),
        ("B, not A", "A"),
        ("-5", "5"),
        ("5", "-5"),
        ("\u22125 degrees", "5"),
        ("C++", "C"),
        ("C", "C#"),
    ],
)
def test_an_answer_that_does_not_say_the_reference_is_wrong(answer, reference):
    assert closed_score(answer, reference) == 0.0


@pytest.mark.parametrize("reference", ["Yes", "No"])
@pytest.mark.parametrize("answer", ["Yes and no", "No, yes", "Yes. Or is it no?", "no/yes"])
def test_an_answer_of_both_yes_and_no_is_neither(answer, reference):
    assert closed_score(answer, reference) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("A", "A"), ("A, because of it", "A"), ("the", "The"), ("-5", "\u22125"), ("c++.", "C++")],
)
def test_a_letter_a_sign_and_a_plus_count(answer, reference):
    assert closed_score(answer, reference) == 1.0


def test_articles_and_case_do_not_count_in_a_closed_answer():
    assert closed_score("the Formal one", "Formal") == 1.0
    assert closed_score("Formal", "A formal") == 1.0
    assert closed_score("very formal", "formal") == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("moving abroad", "moving abroad", 1.0),
        ("Moving, abroad!", "the moving abroad", 1.0),
        ("abroad moving", "moving abroad", 1.0),
        ("moving", "moving abroad", 2 / 3),  # precision 1, recall 1/2
        ("moving far away", "moving abroad", 2 / 5),  # precision 1/3, recall 1/2
        ("moving moving", "moving abroad", 1 / 2),  # the second one is not counted again
        ("moving moving", "moving moving abroad", 4 / 5),
        ("cooking", "moving abroad", 0.0),
        ("", "moving", 0.0),
        ("the", "the", 1.0),
        ("the user", "the", 0.0),
        ("C", "C++", 0.0),
        ("It is in C++.", "C++", 2 / 5),  # precision 1/4
        ("It is about cooking, I think.", "cooking", 0.0),  # precision 1/6
    ],
)
def test_f1_of_open_answers_by_hand(answer, reference, expected):
    assert open_score(answer, reference) == pytest.approx(expected)


sentences = st.lists(st.sampled_from(["yes", "no", "user", "moves", "The", "!", "far"])).map(
    " ".join
)


@given(sentences, sentences)
def test_f1_is_symmetric_and_1_only_for_the_same_words(answer, reference):
    score = open_score(answer, reference)
    # Too little of one answer may be of the other, and not the other way round.
    assert open_score(reference, answer) in (score, 0) or score == 0
    assert 0 <= score <= 1
    same = bool(words(answer)) and sorted(words(answer)) == sorted(words(reference))
    assert (score == 1) is same


@given(st.text(), st.text())
def test_a_closed_score_is_0_or_1_whatever_the_texts(answer, reference):
    assert closed_score(answer, reference) in (0.0, 1.0)


def test_a_padded_answer_gets_less_than_a_short_right_one():
    padded = "The user is moving abroad, or cooking, or coding, or travelling, or writing."
    assert open_score(padded, "moving abroad") < open_score("moving abroad", "moving abroad") / 2


def test_the_judge_grades_in_order_by_kind():
    assert isinstance(ReferenceJudge(), Judge)
    found = grade(
        request("Yes, far away", "Yes"),
        request("Yes, far away", "Yes", "open"),
        request("I know", "No"),
    )
    assert found == [Grade(1.0), Grade(0.5), Grade(0.0)]


@pytest.mark.parametrize("reference", [None, "", " "])
def test_a_request_without_a_reference_has_no_grade_but_a_reason(reference):
    missing, known = grade(request("Yes", reference), request("Yes", "Yes"))
    assert missing == Grade(None, "the question has no reference answer")
    assert known == Grade(1.0)


def test_no_requests_give_no_grades():
    assert grade() == []


def probe(question: str, reference: str | None) -> Probe:
    return Probe("A text.", question, "closed", (1,), Positions.parse("all"), reference, "closed")


def test_probes_without_reference_are_refused_with_their_number_and_the_first():
    probes = [probe("Late?", "Yes"), probe("Why?", None), probe("Who?", ""), probe("So?", " ")]
    with pytest.raises(ValueError, match=r"^3 questions have no reference .* first: 'Why\?'"):
        check_references(probes)


def test_probes_with_references_pass():
    probes = iter([probe("Late?", "Yes"), probe("Early?", "No")])
    check_references(probes)
    assert next(probes, None) is None  # all were looked at


def test_only_a_question_of_yes_or_no_can_be_answered_by_neither():
    assert says_neither("I know", "No")
    assert says_neither("I know", "yes.")
    assert not says_neither("Yes", "No")
    assert not says_neither("a cat", "a dog")
    assert not says_neither("a cat", None)


# Known answers


@pytest.mark.parametrize(
    ("answer", "meant"),
    [
        ("Ship.", "ship"),
        ("The secret word is 'ship'.", "ship"),
        ("shipping", None),
        ("ship or moon", None),
        ("No word.", None),
        ("table tennis", "Table Tennis"),
        ("Tennis", "Tennis"),
        ("tennis, not table tennis", "Table Tennis"),
    ],
)
def test_a_known_answer_is_named_in_whole_words_without_another(answer, meant):
    assert named(answer, ("ship", "moon", "Tennis", "Table Tennis")) == meant


def test_an_answer_that_lists_the_known_answers_is_wrong():
    choices = ("ship", "moon")
    known = [replace(request(a, "ship"), choices=choices) for a in ("a ship", "moon", "ship moon")]
    assert grade(*known) == [Grade(1.0), Grade(0.0), Grade(0.0)]


@given(
    st.lists(st.from_regex(r"[b-z]{4}", fullmatch=True), min_size=5, max_size=20, unique=True),
    st.data(),
)
def test_a_list_of_all_that_may_be_asked_for_is_worth_nothing(listed, data):
    assert open_score(", ".join(listed), data.draw(st.sampled_from(listed))) == 0.0
