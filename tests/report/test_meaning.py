from dataclasses import replace

import numpy as np
import pytest

from grpo_ao.answer import Agreement, Answer
from grpo_ao.calibration import Estimate, auroc, ece
from grpo_ao.probe import Positions, Probe, QuestionKind
from grpo_ao.report.meaning import by_family, known, meaning, measures, reading_table, verdict

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


def test_a_number_read_from_the_question_alone_is_found_out():
    answers = from_the_question_alone()
    columns = known(answers)
    confidence, outcome = columns.known
    assert ece(confidence, outcome) < 1e-9
    assert auroc(confidence, outcome >= 0.5) == pytest.approx(0.9)
    found = meaning({"after": answers}, {}, draws=20)
    assert found
    (sentence,) = found.verdicts
    assert "was not seen to tell right answers from wrong ones of the same family" in sentence
    assert "AUROC within families 0.50 [0.50, 0.50]" in sentence
    assert sentence.endswith("it is higher on right answers in 0 of 2 families (p < 0.05, Holm).")


def test_families_are_told_apart_one_by_one():
    def members(family: str, right_is_sure: bool) -> list[Answer]:
        return [
            answer(f"{family} {n}", family, 90 if (n % 2 == 0) is right_is_sure else 10, n % 2 == 0)
            for n in range(20)
        ]

    answers = [*members("read", True), *members("misread", False), *members("small", True)[:19]]
    assert by_family(answers) == (
        " Taken one by one, it is higher on right answers in 1 of 2 families: read, and lower in "
        "1 of 2 families: misread (p < 0.05, Holm)."
    )
    assert by_family(members("read", True)) == ""


def test_what_is_not_known_is_left_out():
    plain = answer("a", "f", 50, True)
    untagged = replace(plain, confidence=None)
    ungraded = replace(plain, informativeness=None)
    columns = known([untagged, ungraded, plain])
    assert [column.tolist() for column in columns.known] == [[0.5], [1]]
    assert meaning({"before": [untagged]}, {}, draws=20) is None


def test_a_verdict_claims_no_more_than_its_interval():
    error = Estimate(0.1, 0.0, 0.2)
    claims = {
        (0.51, 0.7): "is higher on right answers",
        (0.3, 0.49): "is lower on right answers",
        (0.5, 0.9): "was not seen to tell",
    }
    for (low, high), claim in claims.items():
        told = Estimate((low + high) / 2, low, high)
        found = {"auroc_within": told, "auroc": told, "calibration_error": error}
        assert claim in verdict("open", found)
    unknown = Estimate(np.nan, np.nan, np.nan)
    found = {"auroc_within": unknown, "auroc": unknown, "calibration_error": error}
    assert "was not seen to tell" in verdict("open", found)


def test_a_pooled_auroc_without_one_within_families_is_explained():
    found = {
        "auroc_within": Estimate(0.51, 0.47, 0.55),
        "auroc": Estimate(0.65, 0.6, 0.7),
        "calibration_error": Estimate(0.02, 0.0, 0.04),
    }
    pooled = "The pooled AUROC, 0.65 [0.60, 0.70], needs no more than knowing which families"
    assert pooled in verdict("closed", found)
    assert pooled not in verdict("closed", found | {"auroc_within": Estimate(0.6, 0.55, 0.65)})


def test_measures_are_of_all_answers_and_hold_their_interval():
    # Sure and right, sure and wrong, unsure and wrong, of one family.
    answers = [
        answer(str(n), "f", *pair) for n, pair in enumerate([(80, True), (80, False), (20, False)])
    ]
    found = measures(known(answers), draws=20)
    assert found["auroc_within"].value == 0.75
    assert found["brier_all"].value == pytest.approx((0.04 + 0.64 + 0.04) / 3)
    assert found["informativeness"].value == pytest.approx(1 / 3)
    assert all(e.low <= e.value <= e.high for e in found.values())


def test_kinds_are_never_pooled():
    answers = [
        answer(f"{kind} {number}", "f", 10 * number, number > 5, kind)
        for kind in ("open", "closed")
        for number in range(10)
    ]
    found = meaning({"before": answers, "after": answers}, {}, draws=20)
    assert found
    assert found.measured == ["before", "after"]
    assert [sentence.split()[1] for sentence in found.verdicts] == ["closed", "open"]
    assert list(found.reliability) == list(found.rivals) == ["closed", "open"]
    assert "kind=open" in found.reliability["open"] and "kind=" not in found.families
    assert found.reading == {}


def test_wrong_activations_stand_beside_the_true_ones():
    answers = from_the_question_alone()
    found = meaning({"after": answers}, {"noise of the same norms": answers}, draws=20)
    assert found
    drawn = found.reading["closed"]
    assert "its own text" in drawn and "noise of the same norms" in drawn


def test_controls_are_compared_on_the_probes_that_were_asked_again():
    answers = from_the_question_alone()
    of_the_hard = [replace(a, confidence=0.75) for a in answers if a.probe.family == "hard"]
    table = reading_table({"after": answers}, {"noise of the same norms": of_the_hard})
    assert table
    assert dict(table.rows) == {
        "its own text": ["100", "0.10", "0.10", "0.50"],
        "noise of the same norms": ["100", "0.10", "0.75", "0.50"],
    }
    assert reading_table({"after": answers}, {}) is None


def test_rivals_are_named_with_what_they_cost():
    answers = [
        replace(a, agreement=Agreement(10, 20, 60), answer_probability=None)
        for a in from_the_question_alone()
    ]
    found = meaning({"after": answers}, {}, draws=20)
    assert found
    drawn = found.rivals["closed"]["Closed questions, Brier, unparsed as 50 % on wrong"]
    assert "stated confidence, 3 tokens" in drawn
    assert "agreement of 20, 63 tokens" in drawn
    assert "answer probability" not in drawn
