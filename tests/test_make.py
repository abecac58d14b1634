"""What `make demo` does before it runs."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

if shutil.which("make") is None:
    pytest.skip("make is not installed", allow_module_level=True)


def make(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [["demo"], ["demo", "RUN=runs/second"]])
def test_a_demo_is_a_training_run_of_the_mini_preset(arguments):
    planned = make("-n", *arguments).stdout
    folder = "runs/second" if len(arguments) == 2 else "runs/demo"
    assert f".venv/bin/python train.py --preset mini --output_dir {folder}\n" in planned


def test_a_second_demo_is_refused_with_both_ways_out_and_changes_nothing(tmp_path):
    record = tmp_path / "run.json"
    record.write_text("{}")
    done = make("demo", f"RUN={tmp_path}")
    assert done.returncode != 0
    assert f"{tmp_path} holds a run already" in done.stderr
    assert "make demo RUN=runs/second" in done.stderr
    assert f"--output_dir {tmp_path} --resume" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert record.read_text() == "{}"
