"""Every supported family: read, inject, train, save and load again."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo_ao.oracle import decoding
from grpo_ao.oracle.activations import (
    adapter_off,
    content_start,
    extract_activations,
    subject_token_ids,
)
from grpo_ao.oracle.decoding import reason_undecodable
from grpo_ao.oracle.ends import end_of_turn_id
from grpo_ao.oracle.layers import decoder_layers, decoder_of, num_decoder_layers
from grpo_ao.oracle.loading import load_config
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sampling import Sampling
from grpo_ao.probe import Positions
from grpo_ao.processes import Processes
from grpo_ao.training.checkpoints import make_trainable
from grpo_ao.training.fine_tuning import Start, Target, fine_tune
from tests.families import FAMILIES, LAYERS, WINDOW, model_of, save_family
from tests.rigs import adapter_weights, make_trainer, planted_table
from tests.training.test_trainer import Readback

MODELS = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()
TEXTS = ["It rains.", "The train leaves at noon, said the guard, and nobody believed him."]


@pytest.fixture(scope="module", params=FAMILIES)
def folders(request, tmp_path_factory):
    return save_family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def oracle(folders):
    return Oracle.from_pretrained(*folders, device="cpu")


def test_the_subject_is_read_as_transformers_reads_it(folders, oracle):
    assert num_decoder_layers(load_config(folders[0])) == LAYERS == oracle.num_layers
    found = extract_activations(
        oracle.model, oracle.tokenizer, TEXTS, [1, 2], Positions.parse("all")
    )
    for text, by_layer in zip(TEXTS, found, strict=True):
        ids = subject_token_ids(oracle.tokenizer, text)
        assert len(ids) > WINDOW
        bos = oracle.tokenizer.bos_token_id
        assert bos is None or [n for n, i in enumerate(ids) if i == bos] == [0]
        with adapter_off(oracle.model), torch.no_grad():
            states = decoder_of(oracle.model)(
                input_ids=torch.tensor([ids]), output_hidden_states=True
            ).hidden_states
        for layer in (1, 2):
            read_LD = states[layer + 1][0, content_start(oracle.tokenizer) :]
            torch.testing.assert_close(by_layer[layer], read_LD, atol=1e-4, rtol=1e-4)


def test_a_row_answers_in_a_padded_batch_what_it_answers_alone(oracle):
    table = planted_table(oracle, 5)
    assert len({len(prompt.input_ids) for prompt in table.prompts}) > 1
    bos = oracle.tokenizer.bos_token_id
    assert all(prompt.input_ids.count(bos) == (bos is not None) for prompt in table.prompts)
    together = oracle.complete(table.prompts, table.vectors, Sampling(max_new_tokens=6))
    for row in range(5):
        part = table.part([row])
        assert oracle.complete(part.prompts, part.vectors, Sampling(max_new_tokens=6)) == [
            together[row]
        ]
    # Nearly greedy: several samples of a prompt share one reading of it.
    sampled = oracle.complete(table.prompts, table.vectors, Sampling(2, 1e-5, 6))
    assert sampled == [[greedy, greedy] for (greedy,) in together]


on_gpu = [("cuda", torch.float32, 1e-3), ("cuda", torch.bfloat16, 0.3)]


@pytest.mark.parametrize(
    ("device", "dtype", "within"),
    [("cpu", torch.float32, 1e-3), *(on_gpu if torch.cuda.is_available() else [])],
)
def test_what_is_decoded_token_by_token_is_what_whole_passes_give(folders, device, dtype, within):
    oracle = Oracle.from_pretrained(*folders, device=device, dtype=dtype)
    table = planted_table(oracle, 3)
    decoded = oracle.complete(table.prompts, table.vectors, Sampling(max_new_tokens=5))
    for row, (tokens,) in enumerate(decoded):
        ids = list(table.prompts[row].input_ids)
        with oracle.hook.serving(table.injection([row]).to(device)), torch.no_grad():
            for token in tokens:
                ids_BL = torch.tensor([ids], device=device)
                logits_V = oracle.model(input_ids=ids_BL).logits[0, -1]
                # On a GPU, two that are nearly alike change places by rounding.
                assert logits_V.max() - logits_V[token] < within * logits_V.std()
                ids.append(token)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_documents_say_what_falls_back_and_why(family):
    (line,) = re.findall(rf"^\| .*\| `{family}` \|.*\|$", MODELS, re.MULTILINE)
    assert line.split("|")[-2].strip() == (reason_undecodable(model_of(family)) or "nothing")


def test_the_warm_start_learns_the_number_and_leaves_one_adapter(oracle):
    make_trainable(oracle)
    table = planted_table(oracle, 3)
    end = end_of_turn_id(oracle.tokenizer)
    targets = [Target(n, ids, [1, 0, 0], ids, 2) for n in range(3) for ids in ([9, 20 + n, end],)]
    before = adapter_weights(oracle)
    losses = fine_tune(
        Processes(), oracle, Start(oracle), table, targets, 12, 3, 1e-2, 0, lambda n: None
    )
    assert losses[-1] < 0.9 * losses[0]
    assert set(oracle.model.peft_config) == {"default"}
    changed = {n for n, w in adapter_weights(oracle).items() if not torch.equal(before[n], w)}
    assert changed == {name for name in before if "vision_tower" not in name}


def test_a_step_is_made_and_what_is_saved_answers_alike(folders, oracle, tmp_path):
    make_trainable(oracle)
    table = planted_table(oracle, 6)
    readback = Readback(oracle, table)
    before = adapter_weights(oracle)
    trainer = make_trainer(
        tmp_path,
        oracle,
        table,
        max_steps=1,
        kl_penalty=0.1,
        gradient_checkpointing=True,
    )
    # What no gradient reaches must not be trainable: DDP would wait for it.
    reached = {name for name in before if "vision_tower" not in name}
    assert {name for name, p in oracle.model.named_parameters() if p.requires_grad} == reached
    trainer.train()
    assert len(readback.rows_seen) >= 3
    after = adapter_weights(oracle)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == reached
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert row["kl"] == pytest.approx(0.0, abs=1e-6)

    oracle.hook.clear()
    oracle.save_adapter(tmp_path / "adapter")
    again = Oracle.from_pretrained(folders[0], tmp_path / "adapter", device="cpu")
    answers = [
        o.complete(table.prompts, table.vectors, Sampling(max_new_tokens=8))
        for o in (oracle, again)
    ]
    assert answers[0] == answers[1]


def test_what_no_graph_can_hold_is_not_captured_on_a_gpu(monkeypatch):
    monkeypatch.setattr(decoding, "input_device", lambda _: torch.device("cuda"))
    for family in ("gpt_oss", "qwen3_moe"):
        assert "ask the GPU" in (reason_undecodable(model_of(family)) or "")
        model = model_of(family)
        torch.nn.Module.to(model, torch.bfloat16)
        assert reason_undecodable(model) is None
    assert reason_undecodable(model_of("qwen3")) is None


def test_a_turn_ends_as_the_template_ends_it(folders, oracle):
    end = oracle.tokenizer.convert_ids_to_tokens(end_of_turn_id(oracle.tokenizer))
    assert end == ("<end_of_turn>" if "gemma" in str(folders[0].parent.name) else "<|im_end|>")


# The multimodal Gemma 3: the public adapter for gemma-3-27b-it is one of these


def renamed(key: str, version: str) -> str:
    """The key as the transformers of that version named the module."""
    key = key.replace("vision_tower.encoder", "vision_tower.vision_model.encoder")
    if version == "4.50":
        key = key.replace("model.model.vision_tower", "model.vision_tower")
        key = key.replace("model.model.language_model.layers", "model.language_model.model.layers")
    return key


@pytest.mark.parametrize("version", ["4.50", "4.52"])
def test_adapters_of_older_transformers_fit_the_multimodal_model(tmp_path, version):
    base, adapter = save_family("gemma3", tmp_path)
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    old = {renamed(key, version): value for key, value in weights.items()}
    assert old.keys() != weights.keys()
    save_file(old, path)
    oracle = Oracle.from_pretrained(base, adapter, device="cpu")
    assert type(decoder_layers(oracle.model)[0]).__name__ == "Gemma3DecoderLayer"
    loaded = adapter_weights(oracle)
    assert len(loaded) == len(weights)
    for key, value in weights.items():
        assert torch.equal(loaded[key.replace(".weight", ".default.weight")], value), key


def test_an_adapter_of_the_language_model_alone_fits_the_multimodal_model(tmp_path):
    base, adapter = save_family("gemma3", tmp_path)
    path = adapter / "adapter_model.safetensors"
    text = {key: value for key, value in load_file(path).items() if "language_model" in key}
    save_file(text, path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = (
        r"model\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    )
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    oracle = Oracle.from_pretrained(base, adapter, device="cpu")
    assert adapter_weights(oracle).keys() == {
        key.replace(".weight", ".default.weight") for key in text
    }
