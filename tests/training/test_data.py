"""Loading the probes of a run."""

import json

import pytest
from rich.console import Console

from grpo_ao.training.config import TrainConfig, make_defaults
from grpo_ao.training.data import load_probes

TEXT = "Number {} of the texts, which is long enough that twenty of its tokens can be read here."


@pytest.fixture
def questions(tmp_path):
    """A question set of 60 sound rows and, in line 3, a broken one."""
    rows = [
        {"wildchat_question": TEXT.format(n), "oracle_questions": ["Is it so?", "What is it?"]}
        for n in range(60)
    ]
    rows.insert(2, {"oracle_questions": ["Is it so?"]})
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(questions, strict) -> TrainConfig:
    mini = make_defaults("mini", None)
    return TrainConfig(model=mini.model, questions=str(questions), strict=strict)


def test_a_broken_row_is_reported_by_its_number_and_left_out(questions):
    console = Console(width=500)
    with console.capture() as printed:
        train, heldout = load_probes(config_of(questions, strict=False), console, num_layers=8)
    assert "row 3 of" in printed.get()
    assert "the column 'wildchat_question' is missing" in printed.get()
    assert len(train) + len(heldout) == 120
    assert not {probe.text for probe in train} & {probe.text for probe in heldout}


def test_with_strict_a_broken_row_is_an_error(questions):
    with pytest.raises(ValueError, match=r"row 3 of .* the column 'wildchat_question' is missing"):
        load_probes(config_of(questions, strict=True), Console(), num_layers=8)
