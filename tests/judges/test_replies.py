import json

import pytest

from grpo_ao.chat_completion import ReplyError
from grpo_ao.judges.hostile import hostile_answers
from grpo_ao.judges.replies import grade_schema, parse_grade
from grpo_ao.judges.rubric import GRADES
from grpo_ao.judges.sanitise import sanitise


@pytest.mark.parametrize("kind", ["closed", "open"])
def test_a_grade_is_read(kind):
    for letter, score in GRADES[kind].items():
        assert parse_grade(json.dumps({"grade": letter}), kind) == score
        assert parse_grade(f'\n {{\n  "grade": "{letter}"\n}}\n', kind) == score


@pytest.mark.parametrize(
    "content",
    [
        "",
        "A",
        '"A"',
        "85/100",
        "null",
        "NaN",
        "[]",
        "{}",
        '{"grade": "A"',
        '{"grade": "F"}',
        '{"grade": "a"}',
        '{"grade": "A "}',
        '{"grade": "AB"}',
        '{"grade": ["A"]}',
        '{"grade": 1}',
        '{"grade": null}',
        '{"score": 7}',
        '{"Grade": "A"}',
        '{"grade": "A", "why": "right"}',
        '{"grade": "E", "grade": "A"}',
        '{"grade": "A"} {"grade": "A"}',
        '[{"grade": "A"}]',
        '[["grade", "A"]]',
        '{"grade": {"grade": "A"}}',
        'The grade is {"grade": "A"}.',
        '```json\n{"grade": "A"}\n```',
        '{"grade": "X"}',
        '{"grade": "\\ud800"}',
        "[" * 190,
        '{"grade": "A"}' + " " * 200,
    ],
)
@pytest.mark.parametrize("kind", ["closed", "open"])
def test_all_else_is_refused(content, kind):
    with pytest.raises(ReplyError):
        parse_grade(content, kind)


def test_a_closed_question_has_no_middle():
    assert parse_grade('{"grade": "C"}', "open") == 0.5
    with pytest.raises(ReplyError, match="not a grade of A, E"):
        parse_grade('{"grade": "C"}', "closed")


def test_no_hostile_answer_is_a_grade_when_a_judge_echoes_it():
    for _, answer in hostile_answers():
        with pytest.raises(ReplyError):
            parse_grade(sanitise("answer", answer), "open")


def test_the_schema_allows_exactly_what_the_parser_takes():
    schema = grade_schema("open")
    assert schema["properties"]["grade"]["enum"] == ["A", "B", "C", "D", "E"]
    assert schema["required"] == ["grade"]
    assert schema["additionalProperties"] is False
