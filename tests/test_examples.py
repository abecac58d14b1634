"""The examples: what runs on a CPU is run, small; of the rest, commands and code are read."""

import ast
import json
import runpy
import shlex
from pathlib import Path

import matplotlib
import torch
from transformers import AutoModelForCausalLM

from grpo_ao.cli import main, parse_eval_config, parse_train_config
from grpo_ao.files import MINI_WEIGHTS, SMOLLM2
from grpo_ao.training.make_oracle_config import MakeOracleConfig
from tests.tiny import add_adapter

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def cells(name: str) -> list[str]:
    """The code cells of a notebook."""
    notebook = json.loads((EXAMPLES / name).read_text())
    found = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in found)
    return ["".join(cell["source"]) for cell in found]


def test_the_first_look_runs_and_sees_accuracy_fall(capsys):
    matplotlib.use("agg")
    known: dict = {}
    for source in cells("first_look.ipynb"):
        exec(source.replace("CONTEXTS = 30", "CONTEXTS = 8"), known)
    assert known["shown"]["another text"]["right"] < known["shown"]["its own text"]["right"]
    assert "trained to state its confidence" in capsys.readouterr().out


def test_directions_are_asked_about(capsys):
    runpy.run_path(str(EXAMPLES / "own_tensors.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    topics = {line[:15].strip(): line[15:].split()[0] for line in lines}
    assert topics == {"pipe": "housing", "cake": "cooking", "pipe less cake": "housing"}


def test_two_subjects_are_asked_alike(tmp_path, capsys, monkeypatch):
    base, subject = MINI_WEIGHTS / "base", tmp_path / "subject"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    add_adapter(model).save_pretrained(str(subject))
    script = str(EXAMPLES / "fine_tuned_subject.py")
    monkeypatch.setattr("sys.argv", [script, *map(str, (base, MINI_WEIGHTS / "oracle", subject))])
    runpy.run_path(script, run_name="__main__")
    plain, tuned = capsys.readouterr().out.splitlines()[-2:]
    assert plain.startswith("the base model: [epistemic status:")
    assert tuned.startswith(f"{subject}: [epistemic status:")


def test_the_gpu_notebooks_commands_and_code_are_understood(monkeypatch):
    made: list[MakeOracleConfig] = []
    monkeypatch.setattr("grpo_ao.training.make_oracle.make_oracle", made.append)
    commands = []
    for source in cells("calibrate_on_a_gpu.ipynb"):
        lines = source.replace("\\\n", " ").splitlines()
        ast.parse("\n".join(line for line in lines if not line.startswith("!")))
        commands += [line for line in lines if line.startswith("!grpo-ao")]
    typed = [shlex.split(command.removeprefix("!")) for command in commands]
    assert [words[1] for words in typed] == ["make-oracle", "train", "evaluate"]
    main(typed[0][1:])
    parsed = [made[0], parse_train_config(typed[1][2:]), parse_eval_config(typed[2][2:])]
    assert {config.model for config in parsed} == {SMOLLM2}
