"""The reading test: what is asked again, and what it comes to."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from grpo_ao.answer import Answer
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.measuring.again import Controls
from grpo_ao.measuring.ask import Asking, ask
from grpo_ao.measuring.reading import (
    CONTROLS,
    UNANSWERABLE,
    Control,
    Controlled,
    Reading,
    against_stated,
    reading_alerts,
    reading_metrics,
)
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.probe import Positions, Probe
from grpo_ao.processes import Processes


def answer(n, sure, right, family="a"):
    probe = Probe(f"text {n}", "Is it?", "closed", (2,), Positions(3), "Yes", family)
    return replace(Answer(probe, "", (), sure, "Yes"), informativeness=float(right))


# Asked again


@pytest.fixture(scope="module")
def oracle():
    return Oracle.mini()


@pytest.fixture
def controls(oracle, tmp_path):
    generator = torch.Generator().manual_seed(0)
    width = oracle.model.config.hidden_size
    probes = [
        Probe(f"text {n}", f"Is it {n}?", "closed", (2,), Positions(3), "Yes", "ab"[n % 2])
        for n in range(12)
    ]
    vectors = [torch.randn(3, width, generator=generator) for _ in probes]
    table = ProbeTable.of_vectors(oracle, probes, vectors)
    how, processes = Asking(24, batch_size=16), Processes()
    answers = ask(oracle, table, ReferenceJudge(), how, processes)
    path = tmp_path / "controls.jsonl"
    label = {"oracle": "mini"}
    return Controls(oracle, table, answers, ReferenceJudge(), how, processes, 8, path, label)


def test_the_same_questions_are_asked_of_each_control_and_kept(controls, monkeypatch):
    readings = controls.readings()
    assert list(readings) == list(CONTROLS)
    for own, other in readings.values():
        assert [a.probe.id for a in own] == [a.probe.id for a in other]
        assert len(own) == 8
        assert all(a.informativeness is not None for a in other)
    assert readings["noise"].other != readings["noise"].own
    assert readings["noise"].other != readings["same_family"].other
    # What was asked before a run was killed is not asked again.
    monkeypatch.setattr(Oracle, "complete", lambda *_, **__: pytest.fail("asked again"))
    assert controls.readings() == readings


def test_other_confidences_are_of_the_same_answers(controls):
    found = controls.confidences()
    assert {name for name, values in found.items() if not np.isnan(values).any()} == {
        *("family and kind", "question's words"),
        *("linear probe", "linear probe, one a family"),
    }
    for name in ("P(True)", "expected number", "in words"):
        known_N = ~np.isnan(found[name])
        assert known_N.sum() == 8
        assert np.all((found[name][known_N] >= 0) & (found[name][known_N] <= 1))


def test_a_question_with_known_answers_is_answered_by_choice_too(controls):
    assert controls.forced_choices() == []
    assert "forced choice" not in controls.confidences()
    table = ProbeTable(
        [
            replace(probe, choices=("Yes", "No", "Maybe")) if n < 4 else probe
            for n, probe in enumerate(controls.table.probes)
        ],
        controls.table.vectors,
        controls.table.prompts,
    )
    again = replace(controls, table=table, count=12)
    chosen = again.forced_choices()
    assert len(chosen) == 4
    for own, forced in zip(again.answers, chosen, strict=False):
        assert forced.informativeness == float(forced.answer == "Yes")
        # What it says greedily is what it finds likeliest; three shares sum to one.
        assert forced.answer == own.answer
        assert 1 / 3 < forced.confidence <= 1
    sure = again.confidences()["forced choice"]
    assert sure[:4].tolist() == pytest.approx([forced.confidence for forced in chosen])
    assert np.isnan(sure[4:]).all()


def test_a_question_of_which_a_control_cannot_be_made_counts_as_asked(controls):
    counted: list[int] = []
    table = controls.table.part([0])
    alone = replace(controls, table=table, answers=controls.answers[:1], progress=counted.append)
    assert [len(found.own) for found in alone.readings().values()] == [0, 0, 1, 1]
    assert sum(counted) == len(CONTROLS)


# What it comes to


def reading(sure_of_noise: float | None) -> dict[Control, Reading]:
    own = [answer(n, 0.9, n % 10 != 0) for n in range(40)]
    other = [
        replace(a, confidence=sure_of_noise, informativeness=float(n % 2))
        for n, a in enumerate(own)
    ]
    return {"noise": Reading(own, other)}


def test_confidence_and_accuracy_on_noise_are_compared_with_those_on_the_text():
    found = reading_metrics(Controlled(reading(0.5), {}), draws=50)["noise of the same norms"]
    assert found["own"]["informativeness"]["value"] == pytest.approx(0.9)
    assert found["other"]["informativeness"]["value"] == pytest.approx(0.5)
    fall = found["difference"]["confidence_mean"]
    assert (fall["value"], fall["low"], fall["high"]) == pytest.approx((-0.4, -0.4, -0.4))
    assert found["difference"]["informativeness"]["high"] < 0


def test_answers_that_stay_the_same_are_counted():
    def said(n, kind, words):
        probe = replace(answer(n, 0.5, True).probe, kind=kind)
        return replace(answer(n, 0.5, True), probe=probe, answer=words)

    own = [said(0, "closed", "Yes, it is."), said(1, "open", "a pipe"), said(2, "open", "a dog")]
    other = [said(0, "closed", "Yes."), said(1, "open", "A pipe!"), said(2, "open", "a cat")]
    controlled = Controlled({"noise": Reading(own, other)}, {"P": np.array([0.1, 0.2, 0.3])})
    parts = {kind: controlled.of_kind(own, kind) for kind in ("closed", "open")}
    assert {k: part.confidences["P"].tolist() for k, part in parts.items()} == {
        "closed": [0.1],
        "open": [0.2, 0.3],
    }
    found = {k: reading_metrics(part, draws=20) for k, part in parts.items()}
    same = {k: of["noise of the same norms"]["same_answer"] for k, of in found.items()}
    assert {kind: entry["value"] for kind, entry in same.items()} == {"closed": 1.0, "open": 0.5}
    assert same["open"]["low"] < 0.5 < same["open"]["high"]


def test_questions_that_the_other_text_cannot_answer_are_measured_for_themselves():
    own = [answer(n, 0.9, True) for n in range(6)]
    other = [replace(answer(n, n / 10, False), answer=f"It is {n}") for n in range(6)]
    readings: dict[Control, Reading] = {"same_family": Reading(own, other)}
    unanswerable = {own[2].probe.id, own[4].probe.id}
    found = reading_metrics(Controlled(readings, {}, (), unanswerable), draws=20)[UNANSWERABLE]
    assert found["other"]["n"] == 2
    assert found["other"]["confidence_mean"]["value"] == pytest.approx(0.3)
    assert found["difference"]["confidence_mean"]["value"] == pytest.approx(-0.6)
    assert UNANSWERABLE not in reading_metrics(Controlled(readings, {}), draws=20)


def test_an_oracle_that_is_sure_of_noise_is_named():
    def alerts(sure):
        return reading_alerts({"noise of the same norms": reading(sure)["noise"].other})

    (alert,) = alerts(0.78)
    assert "right 50% of the time and says 78%" in alert
    assert alert.startswith("On closed questions about noise")
    assert not alerts(0.55)
    assert not alerts(None)
    assert not reading_alerts({})


def test_other_sources_are_compared_where_both_are_known():
    answers = [answer(n, 0.8, n % 2) for n in range(20)] + [answer(20, None, 1)]
    knows_N = np.array([np.nan, *(float(n % 2) for n in range(1, 20)), 1.0])
    found = against_stated(answers, {"knows": knows_N}, draws=50)
    assert list(found) == ["knows"]
    assert found["knows"]["n"] == 19
    assert found["knows"]["brier"]["high"] < 0
    assert found["knows"]["auroc_within"]["value"] == 0.5
