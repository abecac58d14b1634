"""What a run refuses, or warns of, when it starts: one sentence each, before a model is loaded."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets.config
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from grpo_ao.checks import warnings_of
from grpo_ao.cli import main, parse_train_config
from grpo_ao.config import MINI_WEIGHTS, TrainConfig, make_defaults
from grpo_ao.errors import UserError
from grpo_ao.files import RunFolder
from grpo_ao.oracle.loading import OracleSources, check_sources
from grpo_ao.prepare import prepare
from tests.tiny import config_of_8b

ADAPTER = MINI_WEIGHTS / "oracle"
# The smallest run: what it would train is not the question here.
SMALL = ["--preset", "mini", "--max_steps", "1", "--questions_per_step", "2", "--eval_probes", "4"]
SMALL += ["--warm_start_probes", "2", "--warm_start", "none", "--no_initial_eval"]


@pytest.fixture
def no_load(monkeypatch):
    """Fail the test if the weights of a base model are asked for."""

    def load(*_, **__):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)


def refusal(folder: Path, *arguments: str) -> str:
    """The sentence with which the command ends."""
    with pytest.raises(SystemExit) as caught:
        main(["train", *SMALL, "--output_dir", str(folder), *arguments])
    said = str(caught.value.code)
    assert said.startswith("error: ")
    assert "\n" not in said
    return said


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A copy of the mini oracle's adapter, to be spoilt."""
    return Path(shutil.copytree(ADAPTER, tmp_path / "adapter"))


def questions(tmp_path: Path, *rows: dict) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_an_8b_model_without_a_gpu(tmp_path, no_load):
    config_of_8b().save_pretrained(tmp_path / "8b")  # its config is all there is
    said = refusal(tmp_path / "run", "--model", str(tmp_path / "8b"))
    assert "has 8.2 billion parameters and needs a GPU" in said


@pytest.mark.parametrize("flag", ["--model", "--oracle_lora_path", "--questions"])
def test_a_hub_id_without_network(tmp_path, no_load, monkeypatch, flag):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    said = refusal(tmp_path / "run", flag, "some-one/some-thing")
    assert "some-one/some-thing" in said
    assert "network" in said


def test_a_model_that_is_not_there(tmp_path, no_load):
    said = refusal(tmp_path / "run", "--model", str(tmp_path / "nowhere"))
    assert f"there is no folder {tmp_path / 'nowhere'}" in said


def test_a_base_without_tokenizer(tmp_path, no_load):
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(MINI_WEIGHTS / "base" / "config.json", base)
    said = refusal(tmp_path / "run", "--model", str(base))
    assert "the tokenizer has no chat template" in said


def test_a_disk_without_room_for_the_checkpoints(tmp_path, no_load, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    said = refusal(tmp_path / "run", "--max_steps", "400", "--save_steps", "1")
    assert "has 0.005 GB left, and the checkpoints of this run need" in said
    assert not (tmp_path / "run").exists()


def test_the_room_for_checkpoints_is_that_of_float32(tmp_path, no_load, monkeypatch, adapter):
    path = adapter / "adapter_model.safetensors"
    given = ["--oracle_lora_path", str(adapter), "--max_steps", "400", "--save_steps", "1"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    said = []
    for dtype in (torch.float32, torch.bfloat16):
        save_file({name: w.to(dtype) for name, w in load_file(path).items()}, path)
        said.append(refusal(tmp_path / "run", *given))
    assert said[0] == said[1]


def test_an_adapter_on_other_modules(tmp_path, no_load, adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = ["query_key_value"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    said = refusal(tmp_path / "run", "--oracle_lora_path", str(adapter))
    assert "does not fit the base model" in said
    assert "query_key_value" in said


def test_a_placeholder_of_several_tokens(tmp_path, no_load, adapter):
    spec = json.loads((adapter / "ao_config.json").read_text())
    (adapter / "ao_config.json").write_text(json.dumps({**spec, "special_token": " xyzzy"}))
    said = refusal(tmp_path / "run", "--oracle_lora_path", str(adapter))
    assert "the placeholder ' xyzzy' is" in said


def test_an_injection_layer_that_is_not_there(tmp_path, no_load, adapter):
    spec = json.loads((adapter / "ao_config.json").read_text())
    (adapter / "ao_config.json").write_text(json.dumps({**spec, "hook_onto_layer": 8}))
    said = refusal(tmp_path / "run", "--oracle_lora_path", str(adapter))
    assert "there is no layer 8: the model has layers 0 to 7" in said


def test_a_question_set_without_questions(tmp_path, no_load):
    empty = questions(tmp_path, {"wildchat_question": "A text.", "oracle_questions": []})
    said = refusal(tmp_path / "run", "--questions", empty)
    assert "has no rows with questions" in said


TEXTS = [f"The writer of letter {number} asks how to mend a broken chair." for number in range(40)]


def test_a_question_set_without_references(tmp_path, no_load):
    rows = [{"wildchat_question": text, "oracle_questions": ["Is it late?"]} for text in TEXTS]
    said = refusal(tmp_path / "run", "--questions", questions(tmp_path, *rows))
    # Four of the six held-out ones are asked.
    assert "38 questions have no reference answer" in said


def test_a_question_set_that_is_too_small_to_hold_texts_out(tmp_path, no_load):
    row = {"wildchat_question": TEXTS[0], "oracle_questions": ["Late?"]}
    said = refusal(tmp_path / "run", "--questions", questions(tmp_path, row))
    assert "probes of 1 train, 0 validation, 0 heldout texts" in said


def of_training_texts(tmp_path: Path, count: int) -> list[str]:
    """Flags of a question set in which ``count`` questions are there to train on."""
    row = {"questions": ["Late?"], "answers": ["No"]}
    path = questions(tmp_path, *({"text": text, **row} for text in TEXTS))
    return ["--questions", path, "--num_prompts", str(count)]


def test_fewer_questions_than_a_step_of_grpo_asks(tmp_path, no_load):
    few = of_training_texts(tmp_path, 5)
    said = refusal(tmp_path / "run", *few, "--questions_per_step", "6")
    assert "GRPO has 5 questions and asks 6 at once, so that it would make no step" in said
    assert said.endswith("or lower --questions_per_step.")
    trl = tmp_path / "trl.yaml"
    trl.write_text("trl:\n  steps_per_generation: 3\n")
    said = refusal(tmp_path / "run", *few, "--config", str(trl))
    assert "asks 6 at once" in said
    assert said.endswith("or lower --questions_per_step or the batch in the section trl:.")
    assert "the weights were loaded" in refusal(tmp_path / "run", *few)


def test_a_warm_start_without_questions(tmp_path, no_load):
    few = of_training_texts(tmp_path, 2)
    said = refusal(tmp_path / "run", *few, "--warm_start", "measured", "--warm_start_probes", "1")
    assert "the warm start, which gets no question" in said
    assert "--warm_start none" in said


def test_more_positions_than_every_text_has(tmp_path, no_load):
    said = refusal(tmp_path / "run", "--positions", "last:500", "--strict_positions")
    assert "of the 500 positions of 'last:500'" in said


def test_short_texts_are_read_as_far_as_they_go_and_counted(tmp_path, no_load, capsys):
    row = {"oracle_questions": ["Late?"], "reference_answers": ["No"]}
    rows = [{"wildchat_question": text, **row} for text in [*TEXTS, "Hi."]]
    # The weights are asked for, so nothing was refused.
    said = refusal(tmp_path / "run", "--questions", questions(tmp_path, *rows))
    assert "the weights were loaded" in said
    assert "1 probes have texts shorter than 'last:20'" in " ".join(capsys.readouterr().err.split())


def test_a_refused_start_leaves_no_run_behind(tmp_path, no_load):
    refusal(tmp_path / "run", "--positions", "last:500", "--strict_positions")
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_others_out_of_its_folder_until_it_ends(tmp_path):
    folder = tmp_path / "run"
    prepared = prepare(parse_train_config([*SMALL, "--output_dir", str(folder)]))
    with prepared.lock, pytest.raises(UserError, match="another process is running"):
        RunFolder(folder, resume=True)
    assert RunFolder(folder, resume=True).path == folder


AWAY = """
from grpo_ao.errors import UserError

class Away:
    identity = '{"judge": "away"}'

    async def check(self):
        raise UserError("the judge is away.")

    async def grade(self, requests, store=None):
        return []
"""


def test_a_judge_that_cannot_grade_leaves_no_file_behind(tmp_path, no_load, monkeypatch):
    (tmp_path / "away_judge.py").write_text(AWAY)
    monkeypatch.syspath_prepend(tmp_path)
    said = refusal(tmp_path / "runs" / "mini", "--judge", "away_judge:Away")
    assert said == "error: the judge is away."
    assert not (tmp_path / "runs").exists()


def test_few_held_out_texts_are_warned_of(tmp_path, no_load, capsys):
    row = {"questions": ["Late?"], "answers": ["No"]}
    rows = [{"text": text, **row} for text in TEXTS]
    said = refusal(tmp_path / "run", "--questions", questions(tmp_path, *rows))
    assert "the weights were loaded" in said
    assert "only 4 texts are held out" in " ".join(capsys.readouterr().err.split())


def test_an_oracle_without_the_tag_does_not_start_grpo(tmp_path, adapter, capsys):
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    save_file(noise, path, metadata={"format": "pt"})
    said = refusal(
        tmp_path / "run", "--oracle_lora_path", str(adapter), "--calibration_lambda", "0.8"
    )
    assert "only 0% of the oracle's outputs are well-formed, below 95%" in said
    assert "GRPO does not start" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    printed = " ".join(capsys.readouterr().err.split())
    assert "warning: --calibration_lambda 0.8 is above 0.5" in printed


@pytest.mark.parametrize("destination", ["wandb", "tensorboard", "trackio"])
def test_a_destination_without_its_package(tmp_path, no_load, monkeypatch, destination):
    monkeypatch.setitem(sys.modules, destination, None)
    said = refusal(tmp_path / "run", "--report_to", destination)
    assert f"--report_to {destination} needs its package: pip install {destination}" in said


# Warnings


def sources_of(config: TrainConfig) -> OracleSources:
    return check_sources(config.model, config.oracle_lora_path, torch.device("cpu"))


def test_a_lambda_above_one_half_is_warned_of():
    config = make_defaults("mini", None)
    assert warnings_of(config, sources_of(config), [(4,)]) == []
    (warning,) = warnings_of(replace(config, calibration_lambda=0.8), sources_of(config), [(4,)])
    # d reward / d informativeness = 1 - 2 lambda (informativeness - confidence) < 0
    assert "by more than 0.62 loses reward" in warning


def test_layers_that_the_adapter_does_not_know_are_warned_of(adapter):
    spec = json.loads((adapter / "ao_config.json").read_text())
    spec["act_layer_combinations"] = [[2], [4], [6]]
    (adapter / "ao_config.json").write_text(json.dumps(spec))
    config = replace(make_defaults("mini", None), oracle_lora_path=str(adapter))
    assert warnings_of(config, sources_of(config), [(2,), (4,)]) == []
    (warning,) = warnings_of(config, sources_of(config), [(2,), (3,), (4, 6)])
    assert "trained to read layers 2 or 4 or 6, but 3 or 4,6 is read" in warning


def test_a_gguf_file_that_is_not_there(tmp_path, no_load):
    said = refusal(tmp_path / "run", "--model", str(tmp_path / "base.gguf"))
    assert "there is no file" in said
