import math
from dataclasses import replace

import numpy as np
import pytest

from grpo_ao.measuring.metrics import Columns, metric_values
from grpo_ao.report.formats import number, signed
from grpo_ao.report.headline import METRICS, headline_of, metric_lines
from grpo_ao.report.run_record import read_run
from tests.report.made_run import heldout_answers, make_run


def test_values_are_those_of_the_summary_and_intervals_hold_them():
    before, after = heldout_answers(1, knows=False), heldout_answers(2, knows=True)
    measured = {"before": before, "after": after}
    lines = {line.metric: line.estimates for line in metric_lines(measured, draws=50)}
    assert lines.keys() == METRICS.keys()
    first, last = (metric_values(Columns.of(answers)) for answers in (before, after))
    for metric, line in lines.items():
        assert list(line) == ["before", "after", "change"]
        assert line["before"].value == first[metric]
        assert line["after"].value == last[metric]
        assert line["change"].value == last[metric] - first[metric]
        assert line["before"].low <= line["before"].high
        assert line["change"].low <= line["change"].high


def test_what_grpo_alone_did_is_told_from_what_the_warm_start_did():
    before, after = heldout_answers(1, knows=False), heldout_answers(2, knows=True)
    measured = {"before": before, "warm start": after, "after": after}
    for line in metric_lines(measured, draws=5):
        found = line.estimates
        assert list(found) == ["before", "warm start", "after", "change", "change by GRPO"]
        assert found["change by GRPO"].value == 0
        assert found["warm start"] == found["after"]


def test_the_change_is_paired():
    rows = heldout_answers(1, knows=False)
    for line in metric_lines({"before": rows, "after": rows}, draws=20):
        change = line.estimates["change"]
        assert (change.value, change.low, change.high) == (0.0, 0.0, 0.0)


def test_one_measurement_is_shown_alone():
    rows = heldout_answers(1, knows=False)
    for when in ("before", "warm start", "after"):
        for line in metric_lines({when: rows}, draws=5):
            assert list(line.estimates) == [when]


def test_questions_of_one_text_are_drawn_together():
    # Every text has one right and one wrong answer: drawn by text, the mean cannot move.
    answer = heldout_answers(1, knows=False)[3]
    rows = [
        replace(answer, probe=replace(answer.probe, text=str(text)), informativeness=score)
        for text in range(8)
        for score in (0.0, 1.0)
    ]
    lines = {line.metric: line.estimates for line in metric_lines({"before": rows}, draws=50)}
    informativeness = lines["informativeness"]["before"]
    assert (informativeness.low, informativeness.high) == (0.5, 0.5)


def test_measurements_of_other_probes_are_not_compared():
    rows = heldout_answers(1, knows=False)
    with pytest.raises(ValueError, match="not of the same probes"):
        metric_lines({"before": rows, "after": rows[::-1]}, draws=5)


def test_the_headline_counts_probes_and_texts(tmp_path):
    headline = headline_of(read_run(make_run(tmp_path / "run")), draws=5)
    assert headline and headline.compared
    assert (headline.probes, headline.texts) == (60, 21)
    assert 0 < headline.perfect_ece[0] < headline.perfect_ece[1] < 0.3
    assert list(headline.modes) == ["sampled", "greedy"]


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
