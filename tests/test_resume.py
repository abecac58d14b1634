"""Runs that are killed and resumed, on the shipped mini model, started as a user starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo_ao import run as run_module
from grpo_ao.cli import main, parse_train_config
from grpo_ao.judges.protocol import JudgeError

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "--eval_probes": "8",
    "--validation_probes": "8",
    "--warm_start_probes": "8",
    "--warm_start_steps": "4",
    "--warm_start_batch": "4",
    "--max_steps": "6",
    "--save_steps": "2",
    "--questions_per_step": "2",
    "--num_generations": "2",
    "--kl_penalty": "0.05",
    "--plot_every": "3",
}
# What differs between two runs of the same thing.
CLOCK = ("seconds", "tokens_per_second")


def command(folder: Path, *more: str) -> list[str]:
    flags = [text for pair in SETTINGS.items() for text in pair]
    train = str(ROOT / "train.py")
    return [sys.executable, train, "--preset", "mini", "--output_dir", str(folder), *flags, *more]


def finish(folder: Path, *more: str) -> None:
    done = subprocess.run(command(folder, *more), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def steps(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(CLOCK)} for row in rows]


def kill_when(folder: Path, reached) -> None:
    """Start a run and kill it, without warning, as soon as ``reached(folder)`` holds."""
    run = subprocess.Popen(
        command(folder), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 900
    while run.poll() is None and time.monotonic() < end and not reached(folder):
        time.sleep(0.02)
    assert run.poll() is None, "the run ended before it could be killed"
    os.kill(run.pid, signal.SIGKILL)
    run.wait()


def test_a_run_that_is_told_to_stop_finishes_its_step_and_says_how_to_go_on(
    uninterrupted, tmp_path
):
    folder = tmp_path / "run"
    run = subprocess.Popen(command(folder), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 900
    while run.poll() is None and time.monotonic() < end and not at_step(1)(folder):
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=900)
    assert run.returncode == 128 + signal.SIGTERM
    *_, checkpoint = sorted((folder / "checkpoints").glob("checkpoint-*/complete.json"))
    step = checkpoint.parent.name.removeprefix("checkpoint-")
    assert f"stopped by SIGTERM after GRPO step {step}, with a checkpoint. Go on with: " in said
    assert said.rstrip().endswith("--resume")
    assert "Traceback" not in said
    again = [sys.executable, str(ROOT / "train.py"), "--resume", str(folder)]
    done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert steps(folder) == steps(uninterrupted)


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def in_warm_start(folder: Path) -> bool:
    return lines(folder / "warm_start" / "answers.jsonl") > 0


def at_step(step: int):
    def reached(folder: Path) -> bool:
        path = folder / "metrics.jsonl"
        made = path.read_text().splitlines() if path.exists() else []
        return sum('"alert"' not in line for line in made) >= step

    return reached


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(folder)
    return folder


@pytest.mark.parametrize(
    "moment", [in_warm_start, at_step(1), at_step(5)], ids=["warm start", "step 1", "step 5"]
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(uninterrupted, tmp_path, moment):
    folder = tmp_path / "run"
    kill_when(folder, moment)
    finish(folder, "--resume")
    assert steps(folder) == steps(uninterrupted)
    for summary in ("before", "after"):
        assert result(folder)[summary] == result(uninterrupted)[summary]


def test_a_validation_that_cannot_be_made_costs_no_step(tmp_path, monkeypatch):
    folder, ask = tmp_path / "run", run_module.ask
    flags = "--preset mini --warm_start none --no_initial_eval --eval_probes 4 --max_steps 2"
    flags += " --validation_probes 4 --save_steps 2 --questions_per_step 2 --num_generations 2"
    flags += f" --output_dir {folder}"

    def fail(*of, **how):
        if of[-1] is not None and of[-1].name == "step_000002.jsonl":
            raise JudgeError("no credit left")
        return ask(*of, **how)

    monkeypatch.setattr(run_module, "ask", fail)
    with pytest.raises(JudgeError, match="no credit left"):
        run_module.run(parse_train_config(flags.split()))
    assert (folder / "checkpoints" / "checkpoint-2" / "complete.json").is_file()
    monkeypatch.undo()
    # All steps are made: what is left is to ask the last.
    run_module.run(parse_train_config([*flags.split(), "--resume"]))
    asked = {path.stem: lines(path) for path in (folder / "validation").iterdir()}
    assert asked == {"step_000000": 4, "step_000002": 4}
    assert [row["step"] for row in steps(folder) if "alert" not in row] == [1, 2]
    best = json.loads((folder / "best" / "complete.json").read_text())["step"]
    # There is no warm start that could be what ships.
    assert result(folder)["ships"] == (f"GRPO, step {best}" if best else "adapter as it was")


def result(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_run_writes_what_the_readme_promises(uninterrupted):
    found = result(uninterrupted)
    metrics = {
        "n",
        "contexts",
        "informativeness",
        "ece10",
        "auroc",
        "auroc_within",
        "brier",
        "brier_all",
        "brier_isotonic",
        "calibration_error",
        "confidence_mean",
        "confidence_std",
        "parse_rate",
    }
    for when in ("before", "after"):
        for mode in ("sampled", "greedy"):
            assert set(found[when][mode]) == metrics
            assert found[when][mode]["n"] == 8
    assert found["seconds"] > 0
    for name in ("reliability.png", "run.json", "adapter/ao_config.json", "rollouts.jsonl"):
        assert (uninterrupted / name).is_file(), name
    assert (uninterrupted / "adapter" / "adapter_model.safetensors").stat().st_size > 1e5
    assert [row["step"] for row in steps(uninterrupted) if "alert" not in row] == [*range(1, 7)]


def test_a_second_run_into_the_same_folder_is_refused_and_changes_nothing(uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match=r"^error: .* holds a run already"):
        main(["train", *command(uninterrupted)[2:]])
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before


def test_resuming_a_finished_run_trains_and_measures_nothing_again(uninterrupted):
    def files():
        names = ("metrics.jsonl", "rollouts.jsonl", "adapter/adapter_model.safetensors")
        return [(uninterrupted / name).read_bytes() for name in names]

    before, written = result(uninterrupted), files()
    finish(uninterrupted, "--resume")
    after = result(uninterrupted)
    assert {**after, "seconds": 0} == {**before, "seconds": 0}
    assert files() == written
    assert [path.name for path in (uninterrupted / "checkpoints").glob("*-7")] == []
    # The seconds of both processes.
    assert after["seconds"] > before["seconds"]
