import re
from xml.etree import ElementTree

import numpy as np
import pytest

from grpo_ao.report.charts import (
    coverage_chart,
    line_chart,
    reliability_chart,
    running_mean,
    whisker_chart,
)
from grpo_ao.report.headline import Estimate


def parsed(chart) -> ElementTree.Element:
    """A chart is well-formed XML, or the page around it breaks."""
    return ElementTree.fromstring(str(chart))


def points(path: str | None) -> np.ndarray:
    return np.array([[float(n) for n in pair.split()] for pair in (path or "")[1:].split("L")])


def curve(chart) -> np.ndarray:
    (found,) = [e for e in parsed(chart).iter("path") if e.get("class") == "curve"]
    return points(found.get("d"))


def test_a_line_goes_through_its_values():
    chart = line_chart("reward", [1, 2, 3], [0.0, 0.5, 1.0])
    labels = [text.text for text in parsed(chart).iter("text")]
    assert labels[:3] == ["0", "0.5", "1"] and labels[-2:] == ["1", "3"]
    assert curve(chart).tolist() == [[42, 122], [177, 66], [312, 10]]


def test_unknown_values_are_left_out_of_a_line():
    assert curve(line_chart("auroc", [1, 2, 3], [None, 0.0, 1.0]))[0].tolist() == [177, 122]


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0, 1e6])
def test_a_constant_line_has_an_axis(value):
    labels = [text.text for text in parsed(line_chart("x", [1, 2], [value] * 2)).iter("text")]
    assert "0" in labels
    assert len(set(labels)) >= 3


def test_one_step_is_a_line_too():
    assert np.isfinite(curve(line_chart("x", [5], [0.25]))).all()


def test_a_long_line_is_thinned_and_keeps_its_end():
    values = list(np.linspace(0, 1, 5001))
    found = curve(line_chart("x", list(range(5001)), values))
    assert len(found) <= 401
    assert found[-1, 0] == 312


def test_a_message_cannot_leave_its_alert():
    chart = line_chart("x", [1, 2], [0.0, 1.0], [(2, "</title><script>")])
    (title,) = parsed(chart).iter("title")
    assert title.text == "</title><script>"


def test_a_running_mean_is_over_what_came_before():
    assert running_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]
    assert running_mean(np.array([1.0, 3.0]), 1).tolist() == [1, 3]


def test_a_reliability_diagram_has_a_disc_for_every_bin_that_is_filled():
    confidence = np.array([0.05, 0.09, 0.5, 1.0])
    outcome = np.array([0.0, 1.0, 1.0, 1.0])
    chart = reliability_chart("after sampled", "after", confidence, outcome, np.arange(4))
    links = list(parsed(chart).iter("a"))
    assert [(e.get("data-low"), e.get("data-high")) for e in links] == [
        ("0", "9"), ("50", "59"), ("90", "100"),
    ]  # fmt: skip
    circles = [e.find("circle") for e in links]
    at = [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in circles if c is not None]
    # Mean confidence .07 and half right; .5 and 1, all right.
    assert at == [(58.2, 140.0), (170.0, 10.0), (300.0, 10.0)]
    titles = [e.findtext("title") or "" for e in links]
    assert titles[0].startswith("confidence 0 to 9: 2 answers, mean confidence 7, right 0.50 [0.00")


def test_bars_are_filled_as_far_as_their_answers_are_right():
    chart = reliability_chart(
        "v", "after", np.array([0.5, 0.5]), np.array([0.0, 1.0]), np.arange(2)
    )
    heights = {
        kind: [float(h) for h in re.findall(rf'class="bar {kind}"[^>]* height="([\d.]+)"', chart)]
        for kind in ("all", "right")
    }
    assert max(heights["all"]) == 2 * max(heights["right"]) == 52


def test_coverage_starts_at_the_surest_answer():
    chart = coverage_chart({"after": (np.array([0.5, 1.0]), np.array([0.0, 0.5]))})
    assert curve(chart).tolist() == [[170, 10], [300, 140]]


def test_whiskers_span_their_interval_and_nothing_is_drawn_of_nothing():
    estimates = [("before", Estimate(0.5, 0.0, 1.0)), ("after", Estimate(np.nan, np.nan, np.nan))]
    chart = parsed(whisker_chart(estimates))
    (whisker,) = [e for e in chart.iter("line") if e.get("class") == "whisker"]
    assert (whisker.get("x1"), whisker.get("x2")) == ("14.0", "226.0")
    assert str(whisker_chart(estimates[1:])) == ""
