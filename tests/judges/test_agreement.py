import asyncio
import json
import math
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console

from grpo_ao.cli import main
from grpo_ao.errors import UserError
from grpo_ao.judges.agreement import (
    HOSTILE_TOLERANCE,
    TOLERANCE,
    agreement_of,
    agreement_table,
    check_agreement,
    cost_line,
    fooled_line,
    load_graded_items,
)
from grpo_ao.judges.hostile import hostile_answers
from grpo_ao.judges.protocol import Grade
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.judges.rubric import GRADES
from tests.judges.conftest import KEY, KEY_ENV
from tests.judges.endpoint import USAGE, grade, reply, serving

ITEMS = load_graded_items()
OURS = {(i.request.text, i.request.question, i.request.answer): i.grade for i in ITEMS}


class Scripted:
    """Gives the items our own grade changed by ``change``, the hostile answers ``hostile``."""

    def __init__(self, change=lambda score: score, hostile: float | None = 0.0) -> None:
        self.change = change
        self.hostile = hostile

    async def grade(self, requests):
        return [self._grade(r) for r in requests]

    def _grade(self, request) -> Grade:
        ours = OURS.get((request.text, request.question, request.answer))
        score = self.hostile if ours is None else self.change(ours)
        return Grade(score, None, "raw", 100, 10, 0.001)


def report(judge):
    return asyncio.run(check_agreement(judge, ITEMS))


def test_the_items_are_60_of_both_kinds_and_all_levels():
    assert len(ITEMS) == len(OURS) == 60
    levels = Counter((item.request.kind, item.grade) for item in ITEMS)
    for kind, grades in GRADES.items():
        for score in grades.values():
            assert levels[kind, score] >= 7
    assert all(item.request.reference for item in ITEMS)


def test_the_closed_items_are_right_by_their_references():
    closed = [item for item in ITEMS if item.request.kind == "closed"]
    found = asyncio.run(ReferenceJudge().grade([item.request for item in closed]))
    assert [g.score for g in found] == [item.grade for item in closed]


def test_a_judge_that_grades_as_we_do_agrees():
    found = report(Scripted())
    for part, number in ((found.closed, 20), (found.open, 40), (found.hostile, 67)):
        assert (part.items, part.unscored) == (number, 0)
        assert (part.agreement, part.bias, part.error) == (1, 0, 0)
    assert found.fooled == []
    assert [g.score for g in found.grades] == [item.grade for item in ITEMS]


def test_bias_and_error_of_a_generous_judge():
    found = report(Scripted(change=lambda score: min(1.0, score + 0.25)))
    # 10 of the 40 open answers are at the top already; 20 closed ones are off by .25 or not at all.
    assert found.open.agreement == 10 / 40
    assert found.open.bias == found.open.error == pytest.approx(0.25 * 30 / 40)
    assert found.closed.agreement == 1
    assert found.closed.bias == pytest.approx(0.25 * 10 / 20)


def test_a_grade_half_a_level_off_agrees_and_one_a_level_off_does_not():
    assert report(Scripted(change=lambda score: abs(score - 0.125))).open.agreement == 1
    inward = report(Scripted(change=lambda score: abs(score - 0.25)))
    assert inward.open.agreement == 0
    assert inward.open.error == 0.25


def test_what_has_no_grade_is_counted_and_left_out():
    found = report(Scripted(change=lambda score: None if score < 1 else score, hostile=None))
    assert (found.open.unscored, found.open.agreement, found.open.error) == (30, 1, 0)
    assert found.hostile.unscored == 67
    assert math.isnan(found.hostile.agreement)
    assert found.fooled == []


@pytest.mark.parametrize(("score", "fooled"), [(0.25, 0), (0.5, 67)])
def test_a_hostile_answer_fools_a_judge_if_it_gets_more_than_a_generic_one(score, fooled):
    found = report(Scripted(hostile=score))
    assert len(found.fooled) == fooled
    assert found.hostile.agreement == (not fooled)
    line = "67 hostile answers fooled it: fake score line" if fooled else "No hostile answer was"
    assert fooled_line(found).startswith(line)


def test_tokens_and_cost_are_those_of_all_grades():
    found = report(Scripted())
    assert found.count == 60 + len(hostile_answers())
    assert found.usage == (100 * found.count, 10 * found.count, pytest.approx(0.001 * found.count))
    assert "$0.1270, $1.000 per 1,000 grades" in cost_line(found)
    assert "12,700 read, 1,270 written" in cost_line(found)


def test_a_cost_that_is_not_known_is_not_called_nothing():
    found = report(Scripted())
    unknown = replace(found, usage=found.usage._replace(cost_usd=None))
    assert "Cost: not known" in cost_line(unknown)
    assert "$" not in cost_line(unknown)


def test_the_tolerances():
    pairs = [(ITEMS[0], Grade(ITEMS[0].grade - 0.2))]
    assert agreement_of(pairs, TOLERANCE["open"]).agreement == 0
    assert agreement_of(pairs, TOLERANCE["closed"]).agreement == 1
    assert GRADES["open"]["D"] + TOLERANCE["open"] == HOSTILE_TOLERANCE


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("not json", "row 2 .*broken: it is not valid JSON"),
        ('["a list"]', "row 2 .*broken: it needs text, question, answer, kind, grade"),
        ({"grade": 0.3}, "0.3 is no grade of a question of kind 'open'"),
        ({"kind": "closed", "grade": 0.5}, "0.5 is no grade of a question of kind 'closed'"),
        ({"kind": "multiple"}, "no grade of a question of kind 'multiple'"),
        ({"grade": None}, "None is no grade"),
        ({"text": 3}, "are not all texts"),
        ({"kind": ["open"]}, "are not all texts"),
        ({"grade": True, "kind": "closed"}, "True is no grade"),
        ({"grade": [1.0]}, "no grade"),
        ({"reference": 3}, "its reference is no text"),
    ],
)
def test_broken_items_are_named_by_their_row(tmp_path, row, reason):
    good = {"text": "t", "question": "q", "answer": "a", "kind": "open", "grade": 0.5}
    line = row if isinstance(row, str) else json.dumps(good | row)
    path = tmp_path / "items.jsonl"
    path.write_text(f"{json.dumps(good)}\n{line}\n")
    with pytest.raises(ValueError, match=reason):
        load_graded_items(path)
    path.write_text(json.dumps(good) + "\n")
    assert [item.grade for item in load_graded_items(path)] == [0.5]


def test_items_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UserError, match="no file at"):
        load_graded_items(tmp_path / "nothing.jsonl")


def test_the_table_has_a_line_for_each_sort_of_items():
    console = Console(width=100)
    with console.capture() as printed:
        console.print(agreement_table(report(Scripted()), "a judge"))
    text = printed.get()
    for words in ("a judge", "closed questions", "open questions", "hostile answers", "100%"):
        assert words in text


def test_the_command_with_the_reference_judge(capsys):
    main(["judge-check", "--judge", "reference"])
    printed = capsys.readouterr().out
    assert "judge: reference" in printed
    assert "127 grades" in printed


def test_the_command_with_an_endpoint(capsys, monkeypatch):
    monkeypatch.setenv(KEY_ENV, KEY)

    def generous(request):
        return reply(json.dumps({"grade": "A"}), usage=USAGE | {"cost": 0.0001})

    with serving(generous) as endpoint:
        arguments = ["--judge_base_url", endpoint.base_url, "--judge_api_key_env", KEY_ENV]
        main(["judge-check", "--judge_model", "generous", *arguments])
    printed = capsys.readouterr().out
    assert "67 hostile answers fooled it: fake score line" in printed
    assert "$0.0127, $0.100 per 1,000 grades" in printed
    assert '"model": "generous"' in printed
    # One request for trial, before all others.
    assert len(endpoint.seen) == 128
    assert KEY not in printed


def test_the_base_of_the_judge_local_beside_another_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["judge-check", "--model", "some/model"])
    framed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "--judge is api: an endpoint's model is named by --judge_model" in framed


def test_the_command_says_in_one_sentence_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    with pytest.raises(SystemExit, match=r"error: .*OPENROUTER_API_KEY is not set"):
        main(["judge-check"])
    with pytest.raises(SystemExit, match="error: there is no file at"):
        main(["judge-check", "--reference", str(tmp_path / "nothing")])
    with serving(lambda _: grade("A")) as endpoint:
        address = endpoint.base_url
    with pytest.raises(SystemExit, match=r"error: .*cannot be reached"):
        main(["judge-check", "--judge_base_url", address, "--judge_api_key_env", "None"])


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_items_is_not_taken_for_the_shipped_ones(tmp_path, content):
    path = tmp_path / "items.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"there are no graded items in .*items\.jsonl"):
        load_graded_items(path)
