from dataclasses import replace

from grpo_ao.answer import Agreement, Answer
from grpo_ao.probe import Positions, Probe, QuestionKind
from grpo_ao.report.headline import compared
from grpo_ao.report.meaning import known, meaning, reading_tables

LAST = Positions.parse("last:20")


def answer(
    text: str, family: str, confidence: int, right: bool, kind: QuestionKind = "closed"
) -> Answer:
    probe = Probe(text, f"Is it {family}?", kind, (9,), LAST, "Yes", family)
    found = Answer.read(probe, f"[epistemic status: {confidence}] Yes", token_ids=[1, 2, 3])
    return replace(found, informativeness=float(right), answer_probability=0.5)


def from_the_question_alone() -> list[Answer]:
    """An easy family, right and sure 9 times in 10, and a hard one: 1 in 10."""
    return [
        answer(f"{family} {number}", family, sure, number < right)
        for family, sure, right in (("easy", 90, 90), ("hard", 10, 10))
        for number in range(100)
    ]


def opening(measured, controls=None):
    return meaning(measured, compared(measured, draws=20), controls or {}, draws=20)


def test_what_is_not_known_is_left_out():
    plain = answer("a", "f", 50, True)
    untagged = replace(plain, confidence=None)
    ungraded = replace(plain, informativeness=None)
    columns = known([untagged, ungraded, plain])
    assert [column.tolist() for column in columns.known] == [[0.5], [1]]
    assert opening({"before": [untagged]}) is None


def test_kinds_are_never_pooled():
    answers = [
        answer(f"{kind} {number}", "f", 10 * number, number > 5, kind)
        for kind in ("open", "closed")
        for number in range(10)
    ]
    found = opening({"before": answers, "after": answers})
    assert found
    assert found.measured == ["before", "after"]
    for figures in (found.reliability, found.families, found.rivals):
        assert list(figures) == ["closed", "open"]
    assert "kind=open" in found.reliability["open"]
    assert found.reading == {}


def test_wrong_activations_stand_beside_the_true_ones():
    answers = from_the_question_alone()
    found = opening({"after": answers}, {"noise of the same norms": answers})
    assert found
    drawn = found.reading["closed"]
    assert "its own text" in drawn and "noise of the same norms" in drawn


def test_controls_are_compared_on_the_probes_that_were_asked_again():
    answers = from_the_question_alone()
    of_the_hard = [replace(a, confidence=0.75) for a in answers if a.probe.family == "hard"]
    (table,) = reading_tables({"after": answers}, {"noise of the same norms": of_the_hard})
    assert dict(table.rows) == {
        "its own text": ["100", "0.10", "0.10", "0.50"],
        "noise of the same norms": ["100", "0.10", "0.75", "0.50"],
    }
    assert reading_tables({"after": answers}, {}) == []


def test_rivals_are_named_with_what_they_cost():
    answers = [
        replace(a, agreement=Agreement(10, 20, 60), answer_probability=None)
        for a in from_the_question_alone()
    ]
    found = opening({"after": answers})
    assert found
    drawn = found.rivals["closed"]["Closed questions, Brier, unparsed as 50 % on wrong"]
    assert "stated confidence, 3 tokens" in drawn
    assert "agreement of 20, 63 tokens" in drawn
    assert "answer probability" not in drawn
