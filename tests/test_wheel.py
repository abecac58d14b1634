"""What a user has who installed the wheel: no checkout, an empty folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
SMALL = {
    "max_steps": 2,
    "questions_per_step": 2,
    "num_generations": 2,
    "eval_probes": 8,
    "validation_probes": 8,
    "warm_start_probes": 8,
    "warm_start_steps": 2,
    "warm_start_batch": 4,
    "plot_every": 1,
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the wheel installed, to go first on the path."""
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "grpo_ao", source / "grpo_ao", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wheels, target = source / "wheels", tmp_path_factory.mktemp("installed")
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = wheels.glob("grpo_ao-*.whl")
    install = [*PIP, "install", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return target


@pytest.fixture
def grpo_ao(installed, tmp_path):
    """Run the installed command in an empty folder."""

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, str(installed / "bin" / "grpo-ao"), *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


def test_an_oracle_is_asked_trained_and_evaluated(grpo_ao, tmp_path):
    said = grpo_ao("ask", "--text", "I live in Rome. " * 5, "--question", "What is the topic?")
    assert "(confidence " in said
    flags = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    grpo_ao("train", "--preset", "mini", *flags)
    assert (tmp_path / "runs" / "mini" / "report.html").is_file()
    adapter = str(tmp_path / "runs" / "mini" / "adapter")
    evaluation = ("--num_contexts", "2", "--benchmarks", "sst2", "--oracle_lora_path", adapter)
    grpo_ao("evaluate", "--preset", "mini", *evaluation)
    metrics = json.loads((tmp_path / "runs" / "mini-eval" / "metrics.json").read_text())
    assert "oracles" in metrics


def test_the_version_is_that_of_the_metadata(installed, grpo_ao):
    (folder,) = installed.glob("grpo_ao-*.dist-info")
    assert folder.name == f"grpo_ao-{grpo_ao('--version').strip()}.dist-info"
    assert "License-File: LICENSE" in (folder / "METADATA").read_text()
