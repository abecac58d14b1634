"""The examples of docs/extending.md, run as they stand."""

import asyncio
import json
import re
import sys
from dataclasses import replace
from math import log
from pathlib import Path

import pytest

from grpo_ao.answer import Answer
from grpo_ao.errors import UserError
from grpo_ao.extensions import load_function
from grpo_ao.judges.factory import make_judge, with_cache
from grpo_ao.judges.flags import JudgeFlags
from grpo_ao.judges.protocol import GradeRequest
from grpo_ao.probe import Positions, Probe
from grpo_ao.probes.rows import load_rows
from grpo_ao.reward import reward_rule, rewarded

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
    own = make_judge(JudgeFlags(judge="my_judge:make_judge"))
    judge = with_cache(own, written / "grades.sqlite")
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


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / 0", r"fails in .*my_odd\.py, line 2 \(ZeroDivisionError: division by zero\)"),
        ("return 'much'", "ValueError: could not convert"),
        ("return float('nan')", "gives what is not finite"),
    ],
)
def test_a_reward_that_is_none_is_one_sentence(written, body, said):
    (written / "my_odd.py").write_text(f"def reward(confidence, informativeness):\n    {body}\n")
    sys.modules.pop("my_odd", None)
    with pytest.raises(UserError, match=said):
        reward_rule(0.5, "my_odd:reward")
    with pytest.raises(UserError, match=r"--judge my_odd:reward fails .*TypeError"):
        make_judge(JudgeFlags(judge="my_odd:reward"))


def test_a_reward_of_ones_own_is_taken_and_a_missing_tag_costs_more_than_any_number(written):
    rule = reward_rule(0.5, "my_reward:log_score")
    probe = Probe("Hi.", "What is it?", "open", (2,), Positions(1), None, "open")
    read = Answer.read(probe, "[epistemic status: 80] a greeting")
    right = rewarded(replace(read, informativeness=1.0), rule)
    assert right.reward == pytest.approx(1 + log(0.8) / 5)
    assert right.calibration == pytest.approx(log(0.8) / 5)
    untagged = rewarded(Answer.read(probe, "a greeting"), rule)
    assert untagged.reward == pytest.approx(log(0.01) / 5 - 1)


def test_the_question_set_of_the_document_is_sound(written):
    (row,) = load_rows(str(written / "my_questions.jsonl"), strict=True).rows
    assert [(item.kind, item.target) for item in row] == [("closed", "Yes"), ("open", "a pipe")]
