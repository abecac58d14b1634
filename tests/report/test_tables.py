"""What an evaluation writes: that a number read from the question alone is called that."""

import json
from dataclasses import replace

import numpy as np
import pytest
from markupsafe import escape

from grpo_ao.answer import Answer
from grpo_ao.calibration import risk_coverage
from grpo_ao.cli import main
from grpo_ao.files import append_jsonl
from grpo_ao.measuring.metrics import measure
from grpo_ao.measuring.reading import Control, Controlled, Reading
from grpo_ao.probe import Positions, Probe
from grpo_ao.report import tables
from grpo_ao.report.plots import risk_coverage_diagram, save
from grpo_ao.report.tables import write_results

SHARES = {"easy": 0.9, "middling": 0.7, "hard": 0.5}


def blind_answers(count=250):
    """Answers whose confidence is their family's share of right ones, whatever they are."""
    rng = np.random.default_rng(0)
    found = []
    for family, share in SHARES.items():
        for n in range(count):
            probe = Probe(f"{family} {n}", "Is it?", "closed", (2,), Positions(3), "Yes", family)
            given = Answer.read(probe, f"[epistemic status: {100 * share:.0f}] Yes", (1, 2))
            found.append(replace(given, informativeness=float(rng.random() < share)))
    return found


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "draw_figures", lambda *_: None)
    few = lambda columns, **_: measure(columns, draws=50)  # noqa: E731
    monkeypatch.setattr(tables, "measure", few)
    answers = blind_answers()
    noise = [replace(answer, informativeness=float(n % 2)) for n, answer in enumerate(answers[:40])]
    known = np.where(np.arange(len(answers)) < 50, 0.5, np.nan)
    controlled = Controlled({"noise": Reading(answers[:40], noise)}, {"P(True)": known})
    groups = {"all": tuple(SHARES)}
    write_results(tmp_path, {}, {"oracle": answers}, groups, 1.0, {"oracle": controlled})
    return tmp_path


def test_a_confidence_read_from_the_question_alone_is_calibrated_and_found_out(written):
    oracle = json.loads((written / "metrics.json").read_text())["oracles"]["oracle"]
    pooled = oracle["groups"]["all"]
    assert pooled["ece10"]["value"] < 0.05
    assert pooled["auroc"]["low"] > 0.6
    assert pooled["auroc_within"]["value"] == 0.5
    within, noise = oracle["findings"]
    assert "not seen to tell right answers from wrong ones of the same family" in within
    assert "needs no more than knowing which families are easy" in within
    assert "noise in place of activations" in noise
    for sentence in (within, noise):
        assert sentence in (written / "metrics.md").read_text()


def test_an_evaluation_has_a_page_of_its_sentences_tables_and_figures(written, capsys):
    answers = blind_answers(count=2)
    append_jsonl(written / "rows.jsonl", [{"oracle": "oracle", **a.to_row()} for a in answers])
    figure = risk_coverage_diagram({"stated": risk_coverage(np.array([0.5]), np.array([1.0]))})
    save(figure, written / "risk_coverage.png")
    main(["report", str(written)])
    page = (written / "report.html").read_text()
    assert str(written / "report.html") in capsys.readouterr().out
    metrics = json.loads((written / "metrics.json").read_text())
    for sentence in metrics["oracles"]["oracle"]["findings"]:
        assert str(escape(sentence)) in page
    assert 'aria-label="risk coverage"' in page
    assert "The reading test" in page
    (written / "metrics.json").unlink()
    with pytest.raises(SystemExit, match=r"has no metrics\.json yet: let it end first"):
        main(["report", str(written)])


def test_controls_and_other_sources_have_tables(written):
    metrics = json.loads((written / "metrics.json").read_text())["oracles"]["oracle"]
    assert metrics["baselines"]["P(True)"]["n"] == 50
    assert metrics["against_stated"]["P(True)"]["n"] == 50
    lines = (written / "metrics.md").read_text().splitlines()
    (noise,) = [line for line in lines if line.startswith("| noise of the same norms |")]
    assert "| 40 |" in noise
    assert [line for line in lines if line.startswith("| P(True) | 50 |")]


def test_layers_stand_in_rising_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "draw_figures", lambda *_: None)
    monkeypatch.setattr(tables, "measure", lambda columns, **_: measure(columns, draws=20))
    answers = [
        replace(answer, probe=replace(answer.probe, layers=layers))
        for answer, layers in zip(
            blind_answers(count=2), [(10,), (9,), (9, 10), (2,)], strict=False
        )
    ]
    metrics = write_results(tmp_path, {}, {"new": answers}, {"all": tuple(SHARES)}, 1.0)
    (measured,) = metrics["oracles"].values()
    assert list(measured["layers"]) == ["2", "9", "9,10", "10"]


def test_closed_and_open_questions_are_measured_each_for_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "draw_figures", lambda *_: None)
    few = lambda columns, **_: measure(columns, draws=20)  # noqa: E731
    monkeypatch.setattr(tables, "measure", few)
    closed = blind_answers(count=8)
    opened = [replace(a, probe=replace(a.probe, kind="open"), informativeness=0.25) for a in closed]
    noise: dict[Control, Reading] = {"noise": Reading(closed[:4], closed[:4])}
    controlled = {"new": Controlled(noise, {"P(True)": np.linspace(0, 1, 2 * len(closed))})}
    answers = {"new": [*closed, *opened], "old": [*closed, *opened]}
    metrics = write_results(tmp_path, {}, answers, {"all": tuple(SHARES)}, 1.0, controlled)
    names = [f"{oracle}, {kind} questions" for oracle in answers for kind in ("closed", "open")]
    assert list(metrics["oracles"]) == names
    new_closed, new_open, *_ = metrics["oracles"].values()
    assert new_open["groups"]["all"]["informativeness"]["value"] == 0.25
    assert new_open["baselines"]["P(True)"]["confidence_mean"]["value"] > 0.7
    assert (len(new_closed["reading"]), len(new_open["reading"])) == (1, 0)
    assert [oracle["findings"][0].split()[1] for oracle in tables.own_parts(metrics)] == [
        "closed",
        "open",
    ]
    assert list(metrics["differences"]) == [
        f"new, {kind} questions - old, {kind} questions" for kind in ("closed", "open")
    ]
