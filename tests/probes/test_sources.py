import json

import pytest

from grpo_ao.errors import UserError
from grpo_ao.probes import sources as module
from grpo_ao.probes.sources import LeftOut, SourceText, read_texts


def write(tmp_path, *rows):
    path = tmp_path / "texts.jsonl"
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(text + "\n" for text in texts))
    return str(path)


def test_texts_of_a_column_with_what_the_row_tells_of_them(tmp_path):
    source = write(
        tmp_path,
        {"body": " It is late. \n", "language": "English", "toxic": True},
        {"body": "Il est tard.", "language": None},
    )
    assert list(read_texts(source, "body")) == [
        SourceText(1, "It is late.", "English", True),
        SourceText(2, "Il est tard.", None, False),
    ]


def turn(role, content, toxic=False):
    return {"role": role, "content": content, "language": "English", "toxic": toxic}


def test_the_text_of_a_conversation_is_its_first_user_turn(monkeypatch):
    conversations = [
        [
            turn("system", "Be kind."),
            turn("user", "Hi"),
            turn("assistant", "Ho"),
            turn("user", "2"),
        ],
        [turn("user", "Die!", toxic=True), turn("assistant", "No.")],
        [turn("assistant", "Ho")],
    ]
    rows = [{"conversation": c, "language": "English", "toxic": False} for c in conversations]

    def load_dataset(name, split, streaming):
        assert (name, split, streaming) == ("allenai/WildChat-1M", "train", True)
        return rows

    monkeypatch.setattr(module, "load_dataset", load_dataset)
    assert list(read_texts("allenai/WildChat-1M", "conversation")) == [
        SourceText(1, "Hi", "English", False),
        SourceText(2, "Die!", "English", True),
        LeftOut(3, "its conversation has no user turn"),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "it is not valid JSON"),
        ("[1]", "it is a list, not an object"),
        ({"other": "x"}, "the column 'text' is missing"),
        ({"text": ""}, "empty or no text"),
        ({"text": 7}, "empty or no text"),
        ({"text": None}, "empty or no text"),
        ({"text": [{"role": "user", "content": None}]}, "empty or no text"),
        ({"text": ["a", "b"]}, "no user turn"),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_row_without_a_text_is_left_out_by_number_and_reason(tmp_path, row, reason):
    first, second, third = read_texts(write(tmp_path, {"text": "a"}, row, {"text": "b"}), "text")
    assert isinstance(second, LeftOut)
    assert second.number == 2
    assert reason in second.reason
    assert [entry.number for entry in (first, third)] == [1, 3]


def test_a_column_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path):
    with pytest.raises(ValueError, match=r"no column 'text': its first row has body, language\."):
        list(read_texts(write(tmp_path, {"body": "x", "language": "en"}), "text"))


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"no file at absent\.jsonl"):
        list(read_texts("absent.jsonl", "text"))
