"""What a warm start would teach about held-out questions, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.targets import table_of, target_of
from grpo_ao.answer import Answer
from grpo_ao.probe import Positions, Probe


def answers(count, probability, right, family="sst2", text="text"):
    """Answers of one probability, of which the first ``right`` are right."""
    return [
        replace(
            Answer.read(
                Probe(f"{text} {n}", "Is it?", "closed", (2,), Positions(1), "Yes", family), "Yes"
            ),
            answer_probability=probability,
            informativeness=float(n < right),
        )
        for n in range(count)
    ]


def taught():
    # Right as often as their probability says.
    return [*answers(400, 0.9, 360), *answers(400, 0.6, 240, text="another text")]


def test_a_greedy_answer_is_right_as_often_as_such_answers_were():
    found = target_of(taught(), [*answers(1, 0.9, 1), *answers(1, 0.6, 0)], drawn=False)
    assert found == pytest.approx([0.9, 0.6], abs=0.01)


def test_an_answer_that_is_drawn_is_right_less_often():
    found = target_of(taught(), [*answers(1, 0.9, 1), *answers(1, 0.6, 0)], drawn=True)
    assert found == pytest.approx([0.9**2 + 0.1**2, 0.6**2 + 0.4**2], abs=0.01)


def test_a_family_that_was_not_taught_is_recalibrated_as_all_others():
    others = answers(400, 0.9, 0, "snli", "third text")
    own, strange = target_of(
        [*taught(), *others], [*answers(1, 0.9, 1), *answers(1, 0.9, 1, "ag_news")], drawn=False
    )
    assert own == pytest.approx(0.9, abs=0.01)
    assert strange < 0.6


def test_the_table_holds_each_confidence_in_and_out_of_distribution():
    asked = [*answers(10, 0.9, 9), *answers(4, 0.9, 1, "ag_news")]
    lines = table_of(taught(), asked).splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines[-2:]] == [
        ["| the answer's own probability, in", "10"],
        ["| the answer's own probability, out", "4"],
    ]
    assert "| 0.900 | 0.900 | 0.000 | 0.090 |" in lines[-2]
    assert len(lines) == 6
    assert np.isfinite(float(lines[0].split(" | ")[2]))
