import hashlib
import re

import pytest

from grpo_ao.judges import rubric
from grpo_ao.judges.hostile import hostile_answers
from grpo_ao.judges.protocol import GradeRequest
from grpo_ao.judges.rubric import GRADES, judge_prompt, rubric_version

REQUEST = GradeRequest("I moved to Oslo.", "Where to?", "To a city.", "open", None)
SLOTS = ["<text>", "</text>", "<question>", "</question>", "<answer>", "</answer>"]


def test_closed_is_one_or_zero_and_open_has_five_levels():
    assert sorted(GRADES["closed"].values()) == [0, 1]
    assert sorted(GRADES["open"].values()) == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize("kind", ["closed", "open"])
def test_each_rubric_explains_its_grades_and_no_others(kind):
    text = rubric._RUBRICS[kind]
    assert re.findall(r"^([A-Z])  ", text, re.MULTILINE) == list(GRADES[kind])
    assert "I cannot tell from these activations" in text.split("\nE  ")[1].split("\n")[0]


def test_the_version_is_pinned_so_that_no_edit_goes_unnoticed():
    """An edit that changes what a judge reads needs another VERSION where its digest stays."""
    prompts = [
        judge_prompt(GradeRequest("t", "q", "a <b>", kind, None), "Reply.")
        for kind in ("closed", "open")
    ]
    digest = hashlib.sha256("".join(prompts).encode()).hexdigest()[:8]
    assert (rubric_version(), digest) == ("v1-a078e4e4", "5dce4a4e")


def test_the_version_changes_with_the_texts(monkeypatch):
    before = rubric_version()
    monkeypatch.setitem(rubric._RUBRICS, "open", "Another rubric.")
    assert rubric_version() != before


def test_the_prompt_holds_each_part_once_in_order():
    prompt = judge_prompt(REQUEST, "Reply with a letter.")
    parts = [rubric._RUBRICS["open"], "I moved to Oslo.", "Where to?", "To a city.", "Reply with"]
    found = [prompt.index(part) for part in parts]
    assert found == sorted(found)
    assert prompt.endswith("Reply with a letter.")
    assert "$" not in prompt


@pytest.mark.parametrize("kind", ["closed", "open"])
def test_no_hostile_datum_changes_the_shape_of_the_prompt(kind):
    for name, answer in hostile_answers():
        prompt = judge_prompt(GradeRequest(answer, answer, answer, kind, None), "Reply.")
        assert re.findall(r"<[^>]*>", prompt) == SLOTS, name
        assert prompt.startswith(rubric._RUBRICS[kind]), name
        assert prompt.endswith("</answer>\n\nThe answer ends here. Reply."), name
        assert len(prompt) < 20_000, name


def test_a_slot_in_the_data_is_not_filled():
    request = GradeRequest("$answer", "${reply} $$", "$text", "closed", None)
    prompt = judge_prompt(request, "Reply.")
    assert "<text>\n$answer\n</text>" in prompt
    assert "<question>\n${reply} $$\n</question>" in prompt
    assert "<answer>\n$text\n</answer>" in prompt
