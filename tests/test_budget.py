"""What a run is said to ask of disk and judge, against what it asks."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from grpo_ao.budget import work_of
from grpo_ao.config import make_defaults
from grpo_ao.files import MINI_WEIGHTS
from grpo_ao.oracle.activations import SubjectTexts
from grpo_ao.oracle.layers import hidden_width
from grpo_ao.oracle.loading import load_config, load_tokenizer
from grpo_ao.oracle.store import ActivationStore
from grpo_ao.prepare import probes_of_run
from grpo_ao.terminal import terminal

SMALL = replace(
    make_defaults("mini"),
    warm_start_probes=40,
    max_steps=5,
    validation_probes=10,
    eval_probes=20,
    benchmarks=("tense",),
    eval_contexts=4,
)


def numbers_stored(config, folder) -> int:
    """The numbers in the stores of a run, of which each list of probes has its own."""
    texts = SubjectTexts(load_tokenizer(config.model))
    probes, benchmarks = probes_of_run(config, texts, terminal(quiet=True))
    base = AutoModelForCausalLM.from_pretrained(MINI_WEIGHTS / "base", dtype=torch.float32)
    train = [*probes.warm_start, *probes.grpo]
    count = 0
    for stored in (train, probes.validation, probes.heldout, benchmarks):
        path = ActivationStore.build(folder, base, texts, stored, "mini").path
        with safe_open(path, framework="pt") as file:
            count += sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    return count


@pytest.mark.parametrize("positions", ["all", "last:20"])
def test_the_bytes_on_disk_are_those_of_all_stores(tmp_path, positions):
    config = replace(SMALL, positions=positions)
    width = hidden_width(load_config(config.model))
    assert work_of(config).vectors_kept * width == numbers_stored(config, tmp_path)


def test_completions_and_grades_are_those_of_every_phase():
    counts = work_of(SMALL).counts
    assert counts["completions for the warm start"] == 40
    # Sampled and greedy before and after, greedy after the warm start; GRPO's first and last step.
    assert counts["completions to measure before and after"] == 5 * 20 + 2 * 10
    assert counts["completions on other activations"] == 2 * 20
    assert counts["completions in GRPO"] == 5 * 8 * 8
    checks = counts["completions to check the oracle"]
    grades = counts["grades at most (an answer graded before is free)"]
    assert grades == checks + 40 + 5 * 20 + 2 * 10 + 2 * 20 + 5 * 8 * 8


def test_no_warm_start_is_counted_where_there_is_none():
    work = work_of(replace(SMALL, warm_start="none", max_steps=0))
    assert work.counts["completions for the warm start"] == 0
    assert work.counts["completions to check the oracle"] == 0
