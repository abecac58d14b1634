"""The shipped weights, and what their card and log say of them."""

import json
import sys

import pytest
import torch
from safetensors import safe_open

from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.spec import load_spec
from tools.mini_world.build import WEIGHTS, BuildConfig, BuildLog, layer_indices, main, model_config
from tools.mini_world.exam import _all_right, _by_family, heldout_messages, text_exam


@pytest.fixture(scope="module")
def card():
    return json.loads((WEIGHTS / "card.json").read_text())


@pytest.fixture(scope="module")
def oracle():
    return Oracle.from_pretrained(WEIGHTS / "base", WEIGHTS / "oracle", device="cpu")


def test_the_weights_are_small_and_safe():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    for path in (WEIGHTS / "base/model.safetensors", WEIGHTS / "oracle/adapter_model.safetensors"):
        with safe_open(path, framework="pt") as file:
            dtypes = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
        assert dtypes <= {torch.bfloat16, torch.float16, torch.float32}


def test_the_base_is_qwen3s_architecture_with_2_to_8_million_parameters(oracle):
    base = oracle.model.get_base_model()
    assert type(base).__name__ == "Qwen3ForCausalLM"
    own = [p for name, p in oracle.model.named_parameters() if "lora_" not in name]
    count = sum(p.numel() for p in own)
    log = [json.loads(line) for line in (WEIGHTS / "build_log.jsonl").read_text().splitlines()]
    assert [row["parameters"] for row in log if row["stage"] == "model"] == [count]
    assert 2e6 < count < 8e6


def test_the_adapter_has_its_spec_and_names_the_base_beside_it(oracle):
    spec = load_spec(WEIGHTS / "oracle")
    assert (spec.hook_onto_layer, spec.special_token, spec.steering_coefficient) == (1, " ?", 1.0)
    assert oracle.spec.act_layer_combinations == ((2,), (4,), (6,))
    config = json.loads((WEIGHTS / "oracle" / "adapter_config.json").read_text())
    assert (WEIGHTS / "oracle" / config["base_model_name_or_path"] / "config.json").is_file()
    assert config["r"] == 16


def test_the_card_tells_how_the_weights_were_made_and_what_they_score(card):
    assert card["command"] == "python -m tools.mini_world.build"
    # The settings are this version's: a build with another setting is another card.
    fields = set(BuildConfig.__dataclass_fields__) - {"output_dir", "workers"}
    assert set(card["config"]) == fields
    assert {"python", "torch", "transformers", "peft"} == set(card["versions"])
    exams = {(exam["stage"], exam["templates"]): exam["accuracy"] for exam in card["exams"]}
    assert len(exams) == 3
    assert exams["text exam", "heldout"]["all"] > 0.9
    assert 0.55 < exams["oracle exam", "heldout"]["all"] < 0.95


def test_the_log_has_every_stage_and_its_losses_fall():
    rows = [json.loads(line) for line in (WEIGHTS / "build_log.jsonl").read_text().splitlines()]
    for stage in ("pretrain", "numbers", "oracle"):
        losses = [row["loss"] for row in rows if row["stage"] == stage and "loss" in row]
        assert len(losses) > 10
        assert losses[-1] < losses[0]


def test_the_base_answers_from_the_text_as_its_card_says(oracle, tokenizer, card):
    messages = heldout_messages(0, 8)
    with oracle.model.disable_adapter():
        found = text_exam(oracle.model.get_base_model(), tokenizer, messages, "heldout", 192)
    stated = next(
        exam["accuracy"]["all"]
        for exam in card["exams"]
        if (exam["stage"], exam["templates"]) == ("text exam", "heldout")
    )
    # About 90 questions: three standard errors are .07.
    assert found["all"] == pytest.approx(stated, abs=0.08)


# Exams and the build's own machinery


def test_an_answer_is_right_if_all_of_its_tokens_are_the_likeliest():
    ids_BL = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 2]])
    logits_BLV = torch.zeros(3, 3, 4)
    for row, said in enumerate([(1, 2), (1, 3), (3, 2)]):
        for column, token in enumerate(said):
            logits_BLV[row, column, token] = 1.0
    answer_BL = torch.tensor([[False, True, True], [False, True, True], [False, False, True]])
    assert _all_right(logits_BLV, ids_BL, answer_BL) == [True, False, True]


def test_exams_are_reported_by_family():
    found = _by_family(["b", "a", "b"], [True, False, False])
    assert found == {"a": 0.0, "all": 0.333, "b": 0.5}


def test_held_out_messages_are_always_the_same():
    few, more = heldout_messages(0, 5), heldout_messages(0, 8)
    assert [m.text for m in few] == [m.text for m in more][:5]


def test_layers_and_sizes_of_the_model_are_the_configs(tokenizer):
    config = BuildConfig(device="cpu")
    assert layer_indices(config) == [2, 4, 6]
    sizes = model_config(config, tokenizer)
    assert (sizes.hidden_size, sizes.num_hidden_layers, sizes.head_dim) == (192, 8, 32)
    assert sizes.eos_token_id == tokenizer.eos_token_id


def test_log_rows_are_kept_as_they_come(tmp_path, capsys):
    log = BuildLog(tmp_path / "log.jsonl")
    log.stage("numbers")({"step": 3})
    log.note({"stage": "rows"})
    written = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert written == [{"stage": "numbers", "step": 3}, {"stage": "rows"}]
    assert log.rows == written
    again = BuildLog(tmp_path / "log.jsonl", kept=("rows",))
    again.note({"stage": "oracle"})
    rows = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["stage"] for row in rows] == ["rows", "oracle"]
    assert '"step": 3' in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_build_without_a_gpu_says_what_to_give(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["build", "--output-dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="give --device cpu"):
        main()
    assert not (tmp_path / "out").exists()
