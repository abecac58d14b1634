import fcntl
from dataclasses import asdict

import pytest

from grpo_ao.cli import main
from grpo_ao.config import EvalConfig
from grpo_ao.errors import UserError
from grpo_ao.files import RunFolder, read_jsonl
from grpo_ao.report.run_record import read_run
from grpo_ao.report.tables import benchmark_tables, when
from grpo_ao.training.make_oracle_config import make_oracle_preset
from tests.report.made_run import (
    benchmark_metrics,
    heldout_answers,
    make_run,
    write_json,
    write_rows,
)


def test_a_run_tells_how_it_stands(tmp_path):
    folder = make_run(tmp_path / "run", finished=False)
    assert read_run(folder).status == "stopped"
    with (folder / ".lock").open("w") as lock:
        assert read_run(folder).status == "stopped"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_run(folder).status == "running"
    write_json(folder / "summary.json", {"seconds": 1.0})
    assert read_run(folder).status == "finished"


def test_alerts_are_apart_from_steps(tmp_path):
    record = read_run(make_run(tmp_path / "run"))
    assert [row["step"] for row in record.steps] == list(range(1, 41))
    assert [row["alert"] for row in record.alerts] == ["confidence_collapse", "new_alert"]
    assert record.last_step == 40


def test_half_a_line_of_a_killed_run_is_left_out(tmp_path):
    folder = make_run(tmp_path / "run", finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "rew')
    assert read_run(folder).last_step == 20


def test_evaluations_come_in_the_order_of_training(tmp_path):
    folder = make_run(tmp_path / "run", evaluations=True)
    write_json(folder / "eval" / "step_000010" / "metrics.json", benchmark_metrics(0.5))
    write_json(folder / "eval" / "warm_start" / "metrics.json", benchmark_metrics(0.5))
    (folder / "eval" / "step_000030").mkdir()  # under way: no metrics yet
    names = [evaluation.name for evaluation in read_run(folder).evaluations]
    assert names == ["before", "warm_start", "step_000010", "step_000020", "after"]
    assert [when(name) for name in names] == [
        "before training", "after the warm start", "step 10", "step 20", "after training",
    ]  # fmt: skip


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no run in .*: it holds no run\.json"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (EvalConfig().settings(), "an evaluation, of which `grpo-ao report` makes tables"),
        (asdict(make_oracle_preset("smollm2-135m")), "make-oracle, of which there is no report"),
    ],
)
@pytest.mark.parametrize("command", [["report"], ["watch"], ["push", "me/oracle"]])
def test_a_folder_of_another_command_is_named(tmp_path, monkeypatch, command, config, named):
    monkeypatch.setattr("grpo_ao.report.card.check_push", None)  # which makes the repository
    folder = RunFolder(tmp_path / "other", resume=False)
    folder.write_record(config, {})
    write_json(folder.path / "adapter" / "adapter_config.json", {})
    with pytest.raises(SystemExit, match=f"error: {folder.path} is the folder of {named}"):
        main([command[0], str(folder.path), *command[1:]])


def test_without_evaluations_there_are_no_tables():
    assert benchmark_tables([]) == []


def test_a_measurement_that_is_under_way_is_left_out(tmp_path):
    folder = make_run(tmp_path / "run")
    path = folder / "heldout_after_greedy.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:10]))
    assert "after greedy" not in read_run(folder).heldout


def test_answers_from_other_activations_are_read_by_the_controls_title(tmp_path):
    folder = make_run(tmp_path / "run")
    answers = heldout_answers(seed=3, knows=False)[:5]
    rows = [{"control": "noise", **answer.to_row()} for answer in answers]
    write_rows(folder / "controls.jsonl", rows)
    assert read_run(folder).controls == {"noise of the same norms": answers}


def test_the_warm_start_is_a_measurement_between_the_others(tmp_path):
    folder = make_run(tmp_path / "run")
    greedy = folder / "heldout_before_greedy.jsonl"
    (folder / "heldout_warm_start_greedy.jsonl").write_text(greedy.read_text())
    record = read_run(folder)
    assert list(record.of_mode("greedy")) == ["before", "warm start", "after"]
    assert record.of_mode("greedy")["warm start"] == record.of_mode("greedy")["before"]


@pytest.mark.parametrize("name", ["run.json", "summary.json", "warm_start/summary.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"config": {'])
def test_a_damaged_file_is_one_sentence_with_its_name(tmp_path, name, content):
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        read_run(folder)


@pytest.mark.parametrize("name", ["rollouts.jsonl", "controls.jsonl"])
def test_rows_without_their_label_are_one_sentence(tmp_path, name):
    folder = make_run(tmp_path / "run")
    rows = read_jsonl(folder / name)
    for row in rows:
        del row["step" if name == "rollouts.jsonl" else "control"]
    write_rows(folder / name, rows)
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        read_run(folder)


@pytest.mark.parametrize("record", [{}, {"config": []}])
def test_a_record_without_settings_is_one_sentence(tmp_path, record):
    folder = make_run(tmp_path / "run")
    write_json(folder / "run.json", record)
    with pytest.raises(UserError, match=r"run\.json is damaged: it holds no settings"):
        read_run(folder)
