from dataclasses import replace

import numpy as np
import pytest

from grpo_ao.answer import Answer
from grpo_ao.calibration import auroc, ece
from grpo_ao.measuring.metrics import Columns, measure
from grpo_ao.report.findings import by_family, changed, findings, rivals, verdict
from tests.report.test_meaning import answer, from_the_question_alone


def entry(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high}


UNKNOWN = entry(np.nan, np.nan)
ERROR = entry(0.0, 0.2)


def measured(within: dict[str, float], pooled: dict[str, float], texts: int = 100) -> dict:
    return {
        "auroc_within": within,
        "auroc": pooled,
        "calibration_error": ERROR,
        "contexts": texts,
        "families_left_out": 0,
    }


def test_a_number_read_from_the_question_alone_is_found_out():
    answers = from_the_question_alone()
    confidence, outcome = Columns.of(answers).known
    assert ece(confidence, outcome) < 1e-9
    assert auroc(confidence, outcome >= 0.5) == pytest.approx(0.9)
    found = measure(Columns.of(answers), draws=20)
    (sentence,) = findings({"closed": found}, answers, {})
    assert "was not seen to tell right answers from wrong ones of the same family" in sentence
    assert "AUROC within families 0.50 [0.50, 0.50]" in sentence
    assert "The pooled AUROC, 0.90 [" in sentence
    assert "needs no more than knowing which families are easy" in sentence
    assert sentence.endswith("it is higher on right answers in 0 of 2 families (p < 0.05, Holm).")


def test_an_oracle_that_states_nothing_is_told_of():
    silent = [replace(a, confidence=None) for a in from_the_question_alone()]
    (sentence,) = findings({"closed": measure(Columns.of(silent), draws=5)}, silent, {})
    assert sentence.startswith("No output states a confidence")


def test_families_are_told_apart_one_by_one():
    def members(family: str, right_is_sure: bool) -> list[Answer]:
        return [
            answer(f"{family} {n}", family, 90 if (n % 2 == 0) is right_is_sure else 10, n % 2 == 0)
            for n in range(30)
        ]

    answers = [*members("read", True), *members("misread", False), *members("small", True)[:29]]
    assert by_family(answers) == (
        " Taken one by one, it is higher on right answers in 1 of 2 families: read, and lower in "
        "1 of 2 families: misread (p < 0.05, Holm)."
    )
    assert by_family(members("read", True)) == ""


@pytest.mark.parametrize(
    ("within", "claim"),
    [
        (entry(0.51, 0.7), "is higher on right answers"),
        (entry(0.3, 0.49), "is lower on right answers"),
        (entry(0.5, 0.9), "was not seen to tell"),
        (UNKNOWN, "was not seen to tell"),
    ],
)
def test_a_verdict_claims_no_more_than_its_interval(within, claim):
    assert claim in verdict("open", measured(within, within))


def test_a_pooled_auroc_without_one_within_families_is_explained():
    pooled = "The pooled AUROC, 0.65 [0.60, 0.70], needs no more than knowing which families"
    assert pooled in verdict("closed", measured(entry(0.47, 0.55), entry(0.6, 0.7)))
    assert pooled not in verdict("closed", measured(entry(0.55, 0.65), entry(0.6, 0.7)))


def test_few_texts_and_families_of_one_outcome_are_named():
    told = entry(0.6, 0.8)
    assert "Only 29 texts stand behind this" in verdict("closed", measured(told, told, texts=29))
    assert "texts stand behind" not in verdict("closed", measured(told, told, texts=30))
    left_out = measured(told, told) | {"families_left_out": 2}
    assert "AUROC within families (2 with one outcome left out) 0.70" in verdict("open", left_out)


def test_a_change_whose_interval_holds_nothing_is_not_one():
    change = {
        "auroc_within": entry(0.1, 0.3),
        "calibration_error": entry(-0.2, 0.0),
        "brier_all": UNKNOWN,
        "informativeness": entry(-0.3, -0.1),
    }
    assert changed("closed", "warm start", "before", change) == (
        "On closed questions, warm start less before, paired: AUROC within families "
        "+0.200 [+0.100, +0.300]; informativeness \N{MINUS SIGN}0.200 [\N{MINUS SIGN}0.300, "
        "\N{MINUS SIGN}0.100]; no difference shown in calibration error \N{MINUS SIGN}0.100 "
        "[\N{MINUS SIGN}0.200, 0.000]; nothing to compare in Brier score of all outputs."
    )


def test_other_sources_are_better_only_where_that_was_shown():
    against = {
        "answer probability": {"auroc_within": entry(0.1, 0.3), "brier": entry(-0.1, 0.1)},
        "agreement of 20": {"auroc_within": entry(-0.1, 0.1), "brier": entry(-0.3, -0.1)},
    }
    within, brier = rivals("open", against)
    assert "paired: answer probability +0.200 [+0.100, +0.300]; no difference shown in" in within
    assert "no difference shown in answer probability 0.000" in brier
    assert rivals("open", {}) == []
