"""The examples of docs/extending.md, run as they stand."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from grpo_ao.errors import UserError
from grpo_ao.extensions import load_function
from grpo_ao.judges.factory import make_judge
from grpo_ao.judges.flags import JudgeFlags
from grpo_ao.judges.protocol import GradeRequest

DOCUMENT = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()


@pytest.fixture
def written(tmp_path, monkeypatch) -> Path:
    """A working directory with the document's files."""
    for name in re.findall(r"^`(my_\w+\.(?:py|jsonl))`", DOCUMENT, re.MULTILINE):
        text = DOCUMENT.partition(f"\n`{name}`")[2]
        (tmp_path / name).write_text(re.findall(r"```\w+\n(.*?)```", text, re.DOTALL)[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_judge_of_ones_own_grades_and_its_grades_are_kept(written):
    judge = make_judge(JudgeFlags(judge="my_judge:make_judge"), cache=written / "grades.sqlite")
    asyncio.run(judge.check())
    requests = [
        GradeRequest("Hi.", "What is it?", "a greeting", "open", reference)
        for reference in ("a word", "word", None)
    ]
    assert [g.score for g in asyncio.run(judge.grade(requests))] == [1.0, 0.0, None]
    assert json.loads(judge.identity)["judge"] == "word count"


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
