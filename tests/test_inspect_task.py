"""An oracle in inspect: what it says there is what it says here, measured alike."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo_ao.errors import UserError
from grpo_ao.files import MINI_WEIGHTS
from grpo_ao.oracle.oracle import Oracle
from tests.tiny import add_adapter

inspect_ai = pytest.importorskip("inspect_ai")

from grpo_ao.inspect_task import oracle  # noqa: E402


def logged(tmp_path, **settings):
    (log,) = inspect_ai.eval(
        oracle(**settings), model="none", display="none", log_dir=str(tmp_path)
    )
    assert log.status == "success", log.error
    return log


def test_the_mini_oracle_is_asked_its_benchmarks_and_measured(tmp_path):
    log = logged(tmp_path, benchmarks=["ner", "tense"], num_contexts=4)
    assert len(log.samples) == 8
    (scored,) = log.results.scores
    values = {name: found.value for name, found in scored.metrics.items()}
    grades = [sample.scores["informativeness"].value for sample in log.samples]
    assert values["informativeness"] == pytest.approx(sum(grades) / 8)
    assert values["parse_rate"] == 1
    assert 0 <= values["confidence_mean"] <= 1
    sample = log.samples[0]
    (said,) = Oracle.mini().ask([sample.metadata["text"]], [sample.input])
    assert sample.output.completion == said.completion
    assert sample.scores["informativeness"].metadata["family"] == "ner"


def test_questions_of_ones_own_are_asked_too(tmp_path):
    path = tmp_path / "own.jsonl"
    row = {"text": "My name is Anna. How do I fix the pipe?", "question": "What is the topic?"}
    row |= {"target": "housing", "choices": ["housing", "cooking"], "family": "topics"}
    path.write_text(json.dumps(row) + "\n")
    tuned = AutoModelForCausalLM.from_pretrained(MINI_WEIGHTS / "base", dtype=torch.float32)
    add_adapter(tuned, 1).save_pretrained(tmp_path / "subject/adapter")
    # As inspect's command line gives them.
    read = {"layers": ["4", "2"], "subject_lora": str(tmp_path / "subject/adapter")}
    (sample,) = logged(tmp_path, benchmarks=str(path), **read).samples
    score = sample.scores["informativeness"]
    assert score.metadata["layer"] == [2, 4]
    assert score.metadata["subject"] == "subject/adapter"
    assert score.value == float("housing" in score.answer)
    assert score.metadata["family"] == "topics"


def test_half_of_an_oracle_is_not_the_mini_one(monkeypatch):
    monkeypatch.setattr("grpo_ao.inspect_task.load_items", None)  # which may fetch the paper's
    with pytest.raises(UserError, match="give both base and oracle_lora_path, or neither"):
        oracle(base="some/name")
    with pytest.raises(UserError, match="give both base and oracle_lora_path, or neither"):
        oracle(oracle_lora_path="some/name")
