"""The examples of docs/extending.md, run as they stand."""

import re
from pathlib import Path

import pytest

from grpo_ao.cli import main
from grpo_ao.errors import UserError
from grpo_ao.extensions import load_function

DOCUMENT = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()
SMALL = "--warm_start_probes 4 --warm_start_samples 2 --warm_start_steps 1 --warm_start_batch 2 "
SMALL += "--no_initial_eval --eval_probes 4 --max_steps 1 --questions_per_step 2 "
SMALL += "--num_generations 2 --output_dir run"


@pytest.fixture
def written(tmp_path, monkeypatch) -> Path:
    """A working directory with the document's files."""
    for name in re.findall(r"^`(my_\w+\.(?:py|jsonl))`", DOCUMENT, re.MULTILINE):
        text = DOCUMENT.partition(f"\n`{name}`")[2]
        (tmp_path / name).write_text(re.findall(r"```\w+\n(.*?)```", text, re.DOTALL)[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_judge_of_ones_own_grades_a_run(written):
    main(f"train --preset mini --judge my_judge:make_judge {SMALL}".split())
    assert '"word count"' in (written / "run" / "run.json").read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_judge", "not of the form MODULE:FUNCTION"),
        ("no_such_module:make", "no module no_such_module"),
        ("my_judge:nothing", "has no function nothing"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(written, name, said):
    with pytest.raises(UserError, match=said):
        load_function(name, "--judge")


def test_a_fault_inside_ones_own_module_keeps_its_traceback(written):
    (written / "my_broken.py").write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_function("my_broken:make", "--judge")
