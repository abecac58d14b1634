"""What is made of each kind of source."""

import json

import pyarrow
import pytest

from grpo_ao.probes.items import Item
from grpo_ao.training.examples import (
    labelled_examples,
    latentqa_examples,
    mention_examples,
    plain_texts,
)

TEXTS = ["The harbour sleeps under heavy snow.", "Nobody answered when Clara called."]


def test_a_word_is_asked_for_that_is_there_and_one_of_another_text():
    for example in mention_examples(TEXTS):
        word = next(w for w in example.question.split("'") if w.isalpha() and len(w) > 3)
        assert (word in example.text) == (example.target == "Yes")


def test_labelled_texts_are_asked_about_with_the_right_label_and_another(tmp_path):
    path = tmp_path / "reviews.jsonl.zst"
    rows = [{"text": f"{n}", "label": ("good", "bad")[n % 2]} for n in range(4)]
    with pyarrow.output_stream(str(path), compression="zstd") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    examples = list(labelled_examples(path))
    assert [e.target for e in examples] == ["Yes", "No"] * 4
    assert all(
        (("good", "bad")[int(e.text) % 2] in e.question) == (e.target == "Yes") for e in examples
    )
    assert {e.family for e in examples} == {"reviews"}


def test_latentqa_joins_prompts_with_the_questions_of_their_label(tmp_path):
    (tmp_path / "qa.json").write_text('{"pirate": [["Who speaks?", "A pirate."]]}')
    row = {"label": "pirate", "system": "Be a pirate.", "stimulus_user": "Hello."}
    (tmp_path / "system.json").write_text(json.dumps([row]))
    (example,) = latentqa_examples(tmp_path)
    text = "Be a pirate.\n\nHello."
    assert example == Item("latentqa", text, "Who speaks?", "A pirate.", kind="open")


def test_plain_text_comes_by_paragraph_each_once(tmp_path):
    path = tmp_path / "plain.txt"
    path.write_text("One\ntext.\n\n\nAnother.\n\nAnother.\n\nThird.")
    assert plain_texts(str(path), 9) == ["One\ntext.", "Another.", "Third."]
    assert plain_texts(str(path), 2) == ["One\ntext.", "Another."]


def test_a_damaged_archive_is_refused(tmp_path):
    path = tmp_path / "plain.jsonl.zst"
    path.write_bytes(b"not zstd")
    with pytest.raises(ValueError, match="cannot be read as zstd"):
        plain_texts(str(path), 9)
