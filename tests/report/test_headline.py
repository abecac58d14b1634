import math
from dataclasses import replace

import numpy as np
import pytest

from grpo_ao.measuring.metrics import SUMMARY, Columns, by_kind, metric_values
from grpo_ao.report.formats import number, signed
from grpo_ao.report.headline import CHANGES, compared, headline_of
from grpo_ao.report.run_record import read_run
from tests.report.made_run import heldout_answers, make_run


def test_values_are_those_of_the_summary_and_intervals_hold_them():
    before, after = heldout_answers(1, knows=False), heldout_answers(2, knows=True)
    measured = {"before": before, "after": after}
    found = compared(measured, draws=50)
    assert list(found) == ["closed", "open"]
    for kind, of_kind in found.items():
        assert list(of_kind) == ["before", "after", "change"]
        first, last = (metric_values(Columns.of(by_kind(a)[kind])) for a in (before, after))
        for metric in SUMMARY:
            assert of_kind["before"][metric]["value"] == first[metric]
            assert of_kind["after"][metric]["value"] == last[metric]
            assert of_kind["change"][metric]["value"] == last[metric] - first[metric]
            for measurement in of_kind.values():
                assert measurement[metric]["low"] <= measurement[metric]["high"]


def test_what_grpo_alone_did_is_told_from_what_the_warm_start_did():
    before, after = heldout_answers(1, knows=False), heldout_answers(2, knows=True)
    measured = {"before": before, "warm start": after, "after": after}
    found = compared(measured, draws=5)["closed"]
    assert list(found) == ["before", "warm start", "after", *CHANGES]
    for metric in SUMMARY:
        assert found["change by GRPO"][metric]["value"] == 0
        assert found["warm start"][metric] == found["after"][metric]
        assert found["change by the warm start"][metric] == found["change"][metric]


def test_the_change_is_paired():
    rows = heldout_answers(1, knows=False)
    change = compared({"before": rows, "after": rows}, draws=20)["open"]["change"]
    for metric in SUMMARY:
        assert [change[metric][of] for of in ("value", "low", "high")] == [0.0, 0.0, 0.0]


def test_one_measurement_is_shown_alone():
    rows = heldout_answers(1, knows=False)
    for when in ("before", "warm start", "after"):
        assert list(compared({when: rows}, draws=5)["closed"]) == [when]


def test_questions_of_one_text_are_drawn_together():
    # Every text has one right and one wrong answer: drawn by text, the mean cannot move.
    answer = heldout_answers(1, knows=False)[3]
    rows = [
        replace(answer, probe=replace(answer.probe, text=str(text)), informativeness=score)
        for text in range(8)
        for score in (0.0, 1.0)
    ]
    found = compared({"before": rows}, draws=50)["closed"]["before"]["informativeness"]
    assert (found["low"], found["high"]) == (0.5, 0.5)


def test_measurements_of_other_probes_are_not_compared():
    rows = heldout_answers(1, knows=False)
    with pytest.raises(ValueError, match="not of the same probes"):
        compared({"before": rows, "after": rows[::-1]}, draws=5)


def test_the_headline_counts_probes_and_texts(tmp_path):
    headline = headline_of(read_run(make_run(tmp_path / "run")), draws=5)
    assert headline and headline.compared
    assert (headline.probes, headline.texts) == (60, 21)
    assert list(headline.modes) == ["sampled", "greedy"]
    assert "heldout/open/greedy/after/auroc_within" in headline.values


def test_every_step_of_training_has_its_sentence_for_each_kind(tmp_path):
    folder = make_run(tmp_path / "run")
    before = (folder / "heldout_before_greedy.jsonl").read_text()
    (folder / "heldout_warm_start_greedy.jsonl").write_text(before)
    headline = headline_of(read_run(folder), draws=20)
    assert headline
    same, grpo = headline.changes[:2]
    assert same.startswith("On closed questions, warm start less before, paired: no difference")
    assert grpo.startswith("On closed questions, after less warm start, paired: ")
    assert [sentence.split()[1] for sentence in headline.changes] == ["closed"] * 2 + ["open"] * 2
    assert "answer probability" in headline.rivals[0]


def test_before_the_first_measurement_there_is_no_headline(tmp_path):
    folder = make_run(tmp_path / "run", finished=False)
    for path in folder.glob("heldout_*"):
        path.unlink()
    assert headline_of(read_run(folder)) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0456, "0.046"),
        (-0.5, "\N{MINUS SIGN}0.500"),
        (2000, "2,000"),
        (1234.56, "1,234.6"),
        (0.0, "0.000"),
        (1.2e-16, "0.000"),
        (1e-5, "1e\N{MINUS SIGN}05"),
        (math.nan, "\N{EN DASH}"),
        (None, "\N{EN DASH}"),
        (np.float64(0.25), "0.250"),
    ],
)
def test_numbers_are_written_as_the_reports_write_them(value, shown):
    assert number(value) == shown


def test_a_difference_has_its_sign():
    assert [signed(0.5), signed(-0.5), signed(0.0)] == ["+0.500", "\N{MINUS SIGN}0.500", "0.000"]
