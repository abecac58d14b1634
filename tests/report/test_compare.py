"""Runs and evaluations beside each other."""

import json
from dataclasses import replace

import numpy as np
import pytest

from grpo_ao.answer import Answer
from grpo_ao.cli import main
from grpo_ao.errors import UserError
from grpo_ao.files import append_jsonl, read_json
from grpo_ao.probe import Positions
from grpo_ao.report import compare
from grpo_ao.report.compare import answers_of, comparison, differing_in_seed, paired
from grpo_ao.report.formats import NONE
from tests.report.made_run import heldout_answers, make_run


def evaluation(folder, **oracles: list[Answer]):
    for oracle, answers in oracles.items():
        append_jsonl(folder / "rows.jsonl", [{"oracle": oracle, **a.to_row()} for a in answers])
    return folder


def in_few_draws(measuring):
    return lambda *columns: measuring(*columns[:-1], 20)


def surer(answers: list[Answer], by: float) -> list[Answer]:
    return [replace(a, confidence=a.confidence + by) for a in answers if a.confidence is not None]


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / name) for name in ("a", "b")]


def test_runs_are_compared_by_their_last_answers_and_evaluations_by_oracle(runs, tmp_path):
    (tmp_path / "eval").mkdir()
    own = heldout_answers(seed=1, knows=False)
    folder = evaluation(tmp_path / "eval", before=own, after=own)
    found = answers_of([*runs, folder])
    assert list(found) == [*map(str, runs), f"{folder}: before", f"{folder}: after"]
    unfinished = make_run(tmp_path / "c", finished=False)
    assert f"{unfinished}, before" in answers_of([runs[0], unfinished])


def test_answers_are_paired_by_probe_whatever_their_order():
    own = heldout_answers(seed=1, knows=False)
    found = paired({"a": own, "b": own[:0:-1]})
    assert found["a"] == found["b"] == own[1:]


def test_answers_at_other_positions_are_paired_by_question():
    own = heldout_answers(seed=1, knows=False)
    moved = [replace(a, probe=replace(a.probe, positions=Positions.parse("token@-7"))) for a in own]
    found = paired({"a": own, "b": moved})
    assert [a.probe.question for a in found["a"]] == [a.probe.question for a in found["b"]]
    assert found["b"] == moved


def test_what_cannot_be_compared_is_one_sentence(runs, tmp_path):
    own = heldout_answers(seed=1, knows=False)
    other = [replace(a, probe=replace(a.probe, text="another")) for a in own]
    with pytest.raises(UserError, match="a, b have no question in common"):
        paired({"a": own, "b": other})
    with pytest.raises(UserError, match="there is one oracle alone"):
        answers_of(runs[:1])
    with pytest.raises(UserError, match="there is no run in"):
        answers_of([runs[0], tmp_path])


def test_differences_are_from_the_first_and_paired():
    own = [a for a in heldout_answers(seed=1, knows=False) if a.confidence is not None]
    _, differences, *_ = comparison({"a": own, "b": surer(own, 0.01)}, draws=50)
    (name,) = differences.rows
    assert name == "b, less a"
    by_title = dict(zip(differences.columns[1:], differences.rows[name], strict=True))
    # The same answers, all surer by .01: no draw of texts changes that.
    assert by_title["Confidence, mean"] == "+0.010 [0.010, 0.010]"
    assert by_title["AUROC"].split()[0] == "0.000"
    assert differences.title == "Differences, paired, closed questions"


def test_sources_of_confidence_are_compared_where_both_have_them():
    answers = [a for a in heldout_answers(seed=1, knows=False) if a.probe.kind == "closed"]
    half, more, none = (
        [replace(a, answer_probability=p) for a in answers] for p in (0.5, 0.75, None)
    )
    *_, differences = comparison({"a": half, "b": more, "c": none}, draws=20)
    (name,) = [row for row in differences.rows if "answer probability" in row]
    assert name == "b: answer probability, less a"
    by_title = dict(zip(differences.columns[1:], differences.rows[name], strict=True))
    assert by_title["Confidence, mean"] == "+0.250 [0.250, 0.250]"


def number_seeds(runs) -> None:
    for seed, run in enumerate(runs):
        record = read_json(run / "run.json")
        record["config"] |= {"seed": seed, "output_dir": str(run)}
        (run / "run.json").write_text(json.dumps(record))


def test_a_run_under_way_is_no_seed_beside_those_that_have_ended(runs, tmp_path):
    begun = [make_run(tmp_path / name, finished=False) for name in ("c", "d")]
    number_seeds([*runs, *begun])
    assert differing_in_seed(begun, answers_of(begun)) == []
    folders = [*begun, *runs]
    assert differing_in_seed(folders, answers_of(folders)) == [[str(run) for run in runs]]


def test_seeds_have_a_mean_and_a_deviation(runs):
    number_seeds(runs)
    names = [[str(run) for run in runs]]
    assert differing_in_seed(runs, answers_of(runs)) == names
    own = [a for a in heldout_answers(seed=1, knows=False) if a.confidence is not None]
    answers = dict(zip(names[0], (own, surer(own, 0.02)), strict=True))
    seeds = next(t for t in comparison(answers, names, draws=20) if t.title.startswith("Mean"))
    cells = dict(zip(seeds.columns[1:], seeds.rows[", ".join(names[0])], strict=True))
    closed = [a for a in own if a.probe.kind == "closed"]
    graded = [a.confidence or 0.0 for a in closed if a.informativeness is not None]
    middle = np.mean(graded) + 0.01
    assert cells["seeds"] == "2"
    assert cells["Confidence, mean"] == f"{middle:.3f} ± {0.02 / 2**0.5:.3f}"


def test_a_metric_that_one_seed_lacks_has_a_dash():
    own = [a for a in heldout_answers(seed=1, knows=False) if a.probe.kind == "closed"]
    right = [replace(a, informativeness=1.0) for a in own]  # of which there is no AUROC
    tables = comparison({"a": own, "b": right}, [["a", "b"]], draws=20)
    seeds = next(table for table in tables if table.title.startswith("Mean"))
    cells = dict(zip(seeds.columns[1:], seeds.rows["a, b"], strict=True))
    assert cells["AUROC"] == f"{NONE} ± {NONE}"
    assert NONE not in cells["Confidence, mean"]


def test_the_command_prints_its_tables_or_writes_a_page(runs, tmp_path, capsys, monkeypatch):
    for name in ("measure", "measure_difference"):
        monkeypatch.setattr(compare, name, in_few_draws(getattr(compare, name)))
    main(["compare", *map(str, runs)])
    printed = capsys.readouterr().out
    assert "Differences, paired" in printed
    assert f"| {runs[1]}, less {runs[0]} \N{DAGGER} |" in printed
    main(["compare", *map(str, runs), "--html", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "Differences, paired" in page
    assert "<script" not in page
