import math
from dataclasses import replace

import numpy as np
import pytest

from grpo_ao.answer import Answer
from grpo_ao.measuring.metrics import (
    Columns,
    auroc_by_family,
    measure,
    measure_difference,
    metric_values,
    summary,
)
from grpo_ao.probe import Positions, Probe


def columns(confidence, informativeness, neither=None, context=None, family=None):
    size = len(informativeness)
    return Columns(
        np.array(confidence, dtype=float),
        np.array(informativeness, dtype=float),
        np.zeros(size, bool) if neither is None else np.array(neither),
        np.array(["a family"] * size if family is None else family),
        np.array([f"context {i}" for i in (range(size) if context is None else context)]),
    )


def answer(completion, informativeness, reference="Yes", text="a text"):
    probe = Probe(text, "Is it?", "closed", (3,), Positions(20), reference, "family")
    return replace(Answer.read(probe, completion), informativeness=informativeness)


def test_answers_become_columns():
    found = Columns.of(
        [
            answer("[epistemic status: 80] Yes", 1.0),
            answer("Perhaps", 0.0),
            answer("[epistemic status: 30] No", None, text="another text"),
        ]
    )
    assert np.array_equal(found.confidence_N, [0.8, np.nan, 0.3], equal_nan=True)
    assert np.array_equal(found.informativeness_N, [1.0, 0.0, np.nan], equal_nan=True)
    assert found.neither_N.tolist() == [False, True, False]
    assert found.context_N[0] == found.context_N[1] != found.context_N[2]


def test_near_equal_texts_are_one_context():
    spaced = answer("Yes", 1.0, text=" a  text\n")
    assert len(set(Columns.of([answer("No", 0.0), spaced]).context_N)) == 1


def test_known_are_the_confidence_and_grade_of_what_has_both():
    found = columns([0.8, np.nan, 0.3], [1.0, 0.0, np.nan])
    assert [known.tolist() for known in found.known] == [[0.8], [1.0]]


def test_an_answer_without_a_grade_counts_nowhere():
    whole = columns([0.9, 0.3, 0.7], [1, 0, np.nan])
    without = metric_values(columns([0.9, 0.3], [1, 0]))
    assert metric_values(whole) == pytest.approx(without, nan_ok=True)
    measured = measure(whole, 10)
    assert [summary(whole)["n"], measured["n"], measured["contexts"]] == [2, 2, 2]


def test_a_summary_is_a_part_of_the_metrics():
    some = columns([0.9, 0.3, np.nan], [1, 0, 0.5])
    found = summary(some)
    assert (found.pop("n"), found.pop("contexts")) == (3, 3)
    values = metric_values(some)
    assert found == pytest.approx({name: values[name] for name in found}, nan_ok=True)
    assert (found["informativeness"], found["parse_rate"]) == (0.5, pytest.approx(2 / 3))
    assert found["confidence_mean"] == pytest.approx(0.6)


def test_an_answer_without_a_confidence_counts_for_accuracy_and_in_no_metric_of_confidence():
    two = metric_values(columns([0.9, 0.3], [1, 0]))
    three = metric_values(columns([0.9, 0.3, np.nan], [1, 0, 1]))
    shares = {"informativeness": 2 / 3, "parse_rate": 2 / 3, "brier_all": (0.01 + 0.09 + 0.25) / 3}
    assert {name: three[name] for name in shares} == pytest.approx(shares)
    others = two.keys() - shares.keys()
    assert {name: three[name] for name in others} == pytest.approx(
        {name: two[name] for name in others}, nan_ok=True
    )


def test_an_answer_that_is_neither_is_counted_apart():
    values = metric_values(columns([0.9] * 4, [1, 0, 0, 0], neither=[False, False, True, False]))
    assert (values["informativeness"], values["neither_rate"]) == (0.25, 0.25)


def test_nothing_stated_leaves_accuracy_alone():
    values = metric_values(columns([np.nan, np.nan], [1, 0]))
    known = {name for name, value in values.items() if not math.isnan(value)}
    assert known == {"informativeness", "parse_rate", "neither_rate", "brier_all"}
    # Nothing stated is 50 % on wrong answers, whatever was said.
    assert values["brier_all"] == 0.25


def test_every_metric_lies_in_its_entry_with_an_interval():
    rng = np.random.default_rng(0)
    confidence = rng.integers(0, 101, 80) / 100
    measured = measure(columns(confidence, rng.random(80) < confidence, context=range(80)), 200)
    assert (measured["n"], measured["contexts"]) == (80, 80)
    sizes = ("n", "contexts", "families", "families_left_out")
    assert [measured[name] for name in sizes] == [80, 80, 1, 0]
    entries = {name: entry for name, entry in measured.items() if name not in sizes}
    assert entries.pop("ece_smooth")["low"] is None
    assert all(entry.keys() == {"value", "low", "high"} for entry in entries.values())
    accuracy = entries["informativeness"]
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert entries["ece10_perfect"]["low"] < 0.1 < entries["ece10_perfect"]["high"]


def test_contexts_are_drawn_whole():
    alone = measure(columns([0.7] * 20, [0, 1] * 10), 200)
    twice = measure(columns([0.7] * 40, [0, 1] * 20, context=[*range(20), *range(20)]), 200)
    assert (twice["n"], twice["contexts"]) == (40, 20)
    width = [m["informativeness"]["high"] - m["informativeness"]["low"] for m in (alone, twice)]
    assert width[1] == pytest.approx(width[0], abs=0.06)


def test_smooth_ece_has_an_interval_where_it_is_asked_for():
    measured = measure(columns([0.9] * 30, [1, 0] * 15), 50, smooth_interval=True)
    entry = measured["ece_smooth"]
    assert entry["low"] < entry["value"] < entry["high"]


def test_a_paired_difference_of_a_measurement_with_itself_is_nothing():
    same = columns([0.9, 0.4, 0.6, 0.2], [1, 1, 0, 0])
    difference = measure_difference(same, same, 50)
    assert difference["n"] == 4
    assert difference["brier"] == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_a_confidence_that_knows_the_family_alone_is_found_out():
    # Right in .6, .75 and .9 of three families' answers, and that is what is stated.
    family = np.repeat(["hard", "middling", "easy"], 100)
    confidence = np.repeat([0.6, 0.75, 0.9], 100)
    right = np.tile(np.arange(100), 3) < np.round(100 * confidence)
    known = np.repeat(["known"], 10)
    measured = measure(
        columns(
            [*confidence, *[0.9] * 10],
            [*right, *[1] * 10],
            context=range(310),
            family=[*family, *known],
        ),
        200,
    )
    assert measured["ece10"]["value"] < 0.02
    assert measured["calibration_error"]["value"] < 0.02
    assert measured["auroc"]["low"] > 0.6
    assert measured["auroc_within"]["value"] == measured["auroc_within"]["high"] == 0.5
    assert (measured["families"], measured["families_left_out"]) == (3, 1)


def test_the_calibration_error_of_a_calibrated_oracle_may_be_nothing_and_its_ece_may_not():
    rng = np.random.default_rng(0)
    confidence = rng.integers(20, 90, 300) / 100
    measured = measure(columns(confidence, rng.random(300) < confidence, context=range(300)), 200)
    assert measured["calibration_error"]["low"] == 0.0
    assert measured["ece10"]["low"] > 0.02


def test_pairing_makes_a_small_steady_gain_certain():
    rng = np.random.default_rng(0)
    confidence = rng.random(200)
    correct = rng.random(200) < confidence
    better = np.clip(confidence + np.where(correct, 0.05, -0.05), 0, 1)
    gain = measure_difference(columns(better, correct), columns(confidence, correct), 200)
    alone = measure(columns(confidence, correct), 200)["brier"]
    assert gain["brier"]["high"] < 0
    assert gain["brier"]["high"] - gain["brier"]["low"] < (alone["high"] - alone["low"]) / 2


def test_a_difference_of_other_items_is_refused():
    with pytest.raises(ValueError, match="the same items"):
        measure_difference(columns([0.5], [1], context=[1]), columns([0.5], [1], context=[2]))


def test_each_family_is_told_by_itself_with_p_values_for_all_of_them():
    def family(name: str, confidences: list[int]) -> list[Answer]:
        """Right and wrong answers in turn."""
        told = enumerate(confidences)
        asked = [answer(f"[epistemic status: {c}] Yes", 1.0 - n % 2, text=str(n)) for n, c in told]
        return [replace(a, probe=replace(a.probe, family=name)) for a in asked]

    answers = [
        *family("read", [90, 10] * 20),
        *family("guessed", [50] * 40),
        *family("small", [90, 10] * 5),
    ]
    found = auroc_by_family(answers, least=20, draws=99)
    assert {name: told.value for name, told in found.items()} == {"read": 0.5, "guessed": 0.0}
    # Of 99 draws none is as far from its mean; twice, since there are two families.
    assert {name: told.p for name, told in found.items()} == {"read": 0.02, "guessed": 1.0}
