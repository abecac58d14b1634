import json
import math
import shutil

import huggingface_hub.constants
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from grpo_ao.errors import UserError
from grpo_ao.files import mark_whole, why_not_whole
from grpo_ao.oracle import hub
from grpo_ao.oracle.activations import extract_activations
from grpo_ao.oracle.layers import decoder_layers
from grpo_ao.oracle.merging import merged
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sampling import Sampling
from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.probe import Positions
from tests.tiny import (
    WIDTH,
    add_adapter,
    config_of_8b,
    tiny_config,
    tiny_model,
    tiny_multimodal,
    tiny_peft,
    tiny_tokenizer,
)


@pytest.fixture
def saved(tmp_path):
    """Folders of a base model with its tokenizer, and of an adapter with its spec."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny_model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    oracle = Oracle(tiny_peft(), tiny_tokenizer(), OracleSpec(steering_coefficient=0.5))
    oracle.save_adapter(adapter)
    return base, adapter


def test_what_is_saved_is_loaded(saved):
    base, adapter = saved
    oracle = Oracle.from_pretrained(base, adapter, device="cpu")
    assert list(oracle.model.peft_config) == ["default"]
    assert not oracle.model.training
    assert not any(p.requires_grad for p in oracle.model.parameters())
    assert {p.dtype for p in oracle.model.parameters()} == {torch.float32}
    assert oracle.hook.coefficient == 0.5
    # int(4 * 25 / 100) and so on, filled in at saving.
    assert oracle.spec.act_layer_combinations == ((1,), (2,), (3,))
    input_ids = torch.tensor([tiny_tokenizer().encode("Hello there")])
    with torch.no_grad():
        found = oracle.model(input_ids=input_ids).logits
        expected = tiny_peft()(input_ids=input_ids).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rank", [16, 32, 64, 128])
def test_adapters_of_the_ranks_in_use_are_loaded_and_merged(saved, tmp_path, rank, rslora):
    config = LoraConfig(
        r=rank,
        lora_alpha=16,
        use_rslora=rslora,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    base, written = tiny_model(), get_peft_model(tiny_model(), config).eval()
    shutil.copytree(saved[1], tmp_path / "given")
    written.save_pretrained(str(tmp_path / "given"))
    oracle = Oracle.from_pretrained(saved[0], tmp_path / "given", device="cpu")
    input_ids = torch.tensor([tiny_tokenizer().encode("Hello there")])
    with torch.no_grad():
        expected = written(input_ids=input_ids).logits
        assert not torch.allclose(base(input_ids=input_ids).logits, expected, atol=0.01)
        torch.testing.assert_close(oracle.model(input_ids=input_ids).logits, expected)
        with merged(oracle.model):
            found = oracle.model(input_ids=input_ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_another_dtype_is_one_argument_away(saved):
    oracle = Oracle.from_pretrained(*saved, device="cpu", dtype=torch.bfloat16)
    assert oracle.model.get_base_model().dtype == torch.bfloat16


@pytest.mark.parametrize(("asked", "layers"), [(None, (2,)), (1, (1,)), ((3, 1), (1, 3))])
def test_the_answer_is_that_of_the_steps_by_hand(saved, asked, layers):
    oracle = Oracle.from_pretrained(*saved, device="cpu")
    texts = ["The train leaves at noon, said the guard.", "It rains in the whole of Bergen."]
    questions = ["Is it late?", "Where ?"]
    answers = oracle.ask(texts, questions, asked, max_new_tokens=8)
    where = Positions.parse("last:20")
    found = extract_activations(oracle.model, oracle.tokenizer, texts, layers, where)
    vectors = [torch.cat([by_layer[layer] for layer in layers]) for by_layer in found]
    prompts = [oracle.prompt(layers, 20 * len(layers), question) for question in questions]
    completions = oracle.complete(prompts, vectors, Sampling(max_new_tokens=8))
    assert [answer.completion for answer in answers] == [
        oracle.tokenizer.decode(ids, skip_special_tokens=True) for (ids,) in completions
    ]
    # A random model does not write the tag.
    assert [answer.confidence for answer in answers] == [None, None]


def test_layer_and_positions_can_be_chosen(saved):
    oracle = Oracle.from_pretrained(*saved, device="cpu")
    text = "The train leaves at noon, said the guard."
    asked = [
        oracle.ask([text], ["What?"], layers=layers, positions=positions, max_new_tokens=6)
        for layers, positions in ((1, "last:5"), (3, "last:5"), (3, Positions.parse("token@-3")))
    ]
    assert len({answers[0].completion for answers in asked}) == 3


def test_texts_and_questions_come_in_pairs(saved):
    oracle = Oracle.from_pretrained(*saved, device="cpu")
    with pytest.raises(ValueError, match="2 texts, but 1 questions"):
        oracle.ask(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="list of texts"):
        oracle.ask("a", ["c"])
    with pytest.raises(ValueError, match="end before them"):
        oracle.ask(["a"], ["c"], positions="token@-99")


def test_a_detached_oracle_is_an_ordinary_model(saved):
    oracle = Oracle.from_pretrained(*saved, device="cpu")
    oracle.detach()
    assert not decoder_layers(oracle.model)[1]._forward_hooks


def test_the_multimodal_model_loads_with_its_adapter(tmp_path):
    tiny_multimodal().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = add_adapter(tiny_multimodal())
    Oracle(model, tiny_tokenizer(), OracleSpec()).save_adapter(tmp_path / "adapter")
    oracle = Oracle.from_pretrained(tmp_path / "base", tmp_path / "adapter", device="cpu")
    assert type(oracle.model.get_base_model()).__name__ == "Gemma3ForConditionalGeneration"
    (answer,) = oracle.ask(["The train leaves at noon."], ["Late?"], max_new_tokens=4)
    assert answer.confidence is None


# What cannot be loaded: one sentence, before the base's weights are read


@pytest.fixture
def saved_without_weights(saved):
    """The same, where reading the base's weights would fail."""
    (saved[0] / "model.safetensors").write_bytes(b"")
    return saved


def test_a_base_that_is_not_there_is_one_sentence(saved, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        Oracle.from_pretrained(tmp_path / "nowhere", saved[1], device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        Oracle.from_pretrained(tmp_path / "empty", saved[1], device="cpu")
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        Oracle.from_pretrained(saved[0], tmp_path / "empty", device="cpu")


def test_a_hub_id_without_network_is_one_sentence(saved, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="some/base is neither"):
        Oracle.from_pretrained("some/base", saved[1], device="cpu")
    with pytest.raises(UserError, match="some/adapter is neither"):
        Oracle.from_pretrained(saved[0], "some/adapter", device="cpu")


def test_an_8b_model_without_gpu_is_one_sentence(saved, tmp_path):
    config_of_8b().save_pretrained(tmp_path / "8b")  # its config is all there is
    with pytest.raises(ValueError, match=r"has 8\.2 billion parameters and needs a GPU"):
        Oracle.from_pretrained(tmp_path / "8b", saved[1], device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_not_there_is_one_sentence(saved):
    with pytest.raises(ValueError, match="no GPU"):
        Oracle.from_pretrained(*saved, device="cuda")


def test_an_adapter_of_another_rank_than_its_config_is_one_sentence(saved_without_weights):
    base, adapter = saved_without_weights
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    with pytest.raises(ValueError, match=r"does not fit.*rank 8.*size mismatch.*lora_A"):
        Oracle.from_pretrained(base, adapter, device="cpu")


def test_an_adapter_of_another_width_is_one_sentence(saved_without_weights, tmp_path):
    config = tiny_config("qwen3")
    config.hidden_size = 2 * WIDTH
    model = get_peft_model(type(tiny_model())(config), LoraConfig(r=4, target_modules="all-linear"))
    model.save_pretrained(str(tmp_path / "wide"))
    with pytest.raises(ValueError, match=r"does not fit.*size mismatch"):
        Oracle.from_pretrained(saved_without_weights[0], tmp_path / "wide", device="cpu")


def test_an_adapter_on_modules_that_are_not_there_is_one_sentence(saved_without_weights):
    base, adapter = saved_without_weights
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps({**config, "target_modules": ["query_key_value"]})
    )
    with pytest.raises(ValueError, match=r"does not fit.*query_key_value.*not found"):
        Oracle.from_pretrained(base, adapter, device="cpu")


def test_an_adapter_with_weights_missing_or_left_over_is_one_sentence(saved_without_weights):
    base, adapter = saved_without_weights
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    dropped = next(key for key in weights if "layers.2.mlp.up_proj.lora_A" in key)
    save_file({key: value for key, value in weights.items() if key != dropped}, path)
    with pytest.raises(ValueError, match=r"lacks 1 weights.*layers\.2\.mlp\.up_proj\.lora_A"):
        Oracle.from_pretrained(base, adapter, device="cpu")
    extra = dropped.replace("layers.2", "layers.9")
    save_file({**weights, extra: weights[dropped].clone()}, path)
    with pytest.raises(ValueError, match=r"1 of its weights have no place.*layers\.9"):
        Oracle.from_pretrained(base, adapter, device="cpu")


def test_an_adapter_on_a_tied_output_layer_is_one_sentence(saved_without_weights, tmp_path):
    base, _ = saved_without_weights
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    model.save_pretrained(str(tmp_path / "head"), save_embedding_layers=False)
    with pytest.raises(ValueError, match=r"on the output layer of .* its input embeddings"):
        Oracle.from_pretrained(base, tmp_path / "head", device="cpu")


@pytest.mark.parametrize(
    "named", [{"hook_onto_layer": 9}, {"act_layer_combinations": [[1], [2, 9]]}]
)
def test_layers_of_another_model_are_refused_by_the_file_that_names_them(
    saved_without_weights, named
):
    base, adapter = saved_without_weights
    path = adapter / "ao_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    with pytest.raises(UserError, match=f"{path} is of another model: there is no layer 9"):
        Oracle.from_pretrained(base, adapter, device="cpu")


def test_an_adapter_that_is_not_lora_is_one_sentence(saved_without_weights):
    base, adapter = saved_without_weights
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(ValueError, match="not a LoRA adapter"):
        Oracle.from_pretrained(base, adapter, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-100]),
            "cannot be read .*: fetch it anew",
        ),
        (lambda path: path.write_bytes(b"not weights"), "cannot be read .*: fetch it anew"),
        (lambda path: path.unlink(), "its weights are missing"),
        (
            lambda path: save_file({k: v / 0 for k, v in load_file(path).items()}, path),
            "has weights that are not finite: .*lora_",
        ),
    ],
)
def test_adapter_weights_that_are_damaged_are_one_sentence(saved_without_weights, change, message):
    base, adapter = saved_without_weights
    change(adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=message):
        Oracle.from_pretrained(base, adapter, device="cpu")


def test_a_pattern_of_modules_that_is_none_is_one_sentence(saved_without_weights):
    base, adapter = saved_without_weights
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": "(q_proj"}))
    with pytest.raises(UserError, match="does not fit the base model"):
        Oracle.from_pretrained(base, adapter, device="cpu")


@pytest.mark.parametrize(
    "value", [{"target_modules": "(.*)*(.|.)*y"}, {"rank_pattern": {"((.|[a-z])+)+1": 2}}]
)
def test_a_pattern_of_modules_that_takes_for_ever_is_one_sentence(saved_without_weights, value):
    base, adapter = saved_without_weights
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | value))
    with pytest.raises(UserError, match=f"of {adapter} has a pattern .* takes for ever to match"):
        Oracle.from_pretrained(base, adapter, device="cpu")


TURN = "{{ messages[0].content }}<|im_end|>"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('only tools') }}", "cannot be read .TemplateError: only tools"),
        ("{% for %}", "cannot be read .TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__ }}" + TURN, "cannot be read .SecurityError"),
        ("{{ messages[0].content + 1 }}", "cannot be read .TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot be read .RecursionError"),
        (ENDLESS + TURN, "takes for ever"),
        ("{{ 'x' * 10 ** 10 }}" + TURN, "takes for ever, or gigabytes"),
        ("{{ messages[0].content | upper }}", "does not hold a user's text as it is"),
        ("Hello.", "does not hold a user's text as it is"),
        (TURN + "\ud800", "cannot be read"),
    ],
)
def test_a_chat_template_that_makes_no_turn_is_one_sentence(saved_without_weights, template, said):
    base, adapter = saved_without_weights
    (base / "chat_template.jinja").write_bytes(template.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=f"(chat template|tokenizer) of {base} {said}"):
        Oracle.from_pretrained(base, adapter, device="cpu")


def test_a_tokenizer_without_its_vocabulary_is_one_sentence(saved_without_weights):
    base, adapter = saved_without_weights
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    with pytest.raises(UserError, match=f"the tokenizer of {base} makes no tokens of a text"):
        Oracle.from_pretrained(base, adapter, device="cpu")


def test_base_weights_that_are_missing_are_not_drawn_at_random(saved):
    base, adapter = saved
    weights = load_file(base / "model.safetensors")
    dropped = next(name for name in weights if "q_proj" in name)
    del weights[dropped]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"lacks 1 weights, first {dropped}: fetch it anew"):
        Oracle.from_pretrained(base, adapter, device="cpu")


BROKEN = [b"", b"{", b"[]", b"null", b'{"a": "\xe9"}', b"[" * 100_000, b'{"a": 1}']


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "adapter_config.json"])
def test_a_file_that_its_library_cannot_read_is_one_sentence(saved_without_weights, name, content):
    base, adapter = saved_without_weights
    ((adapter if name.startswith("adapter") else base) / name).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read \(|is a None, not a LoRA adapter"):
        Oracle.from_pretrained(base, adapter, device="cpu")


@pytest.mark.parametrize(
    "value",
    [
        {"num_hidden_layers": "six"},
        {"model_type": ["qwen3"]},
        {"hidden_size": -1},
        {"num_attention_heads": 0},
        {"vocab_size": None},
    ],
)
def test_a_config_of_which_no_model_can_be_made_is_one_sentence(saved_without_weights, value):
    base, adapter = saved_without_weights
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | value))
    with pytest.raises(UserError, match=r"the config\.json of .* cannot be read"):
        Oracle.from_pretrained(base, adapter, device="cpu")


def test_a_model_that_is_no_language_model_is_one_sentence(saved_without_weights):
    base, adapter = saved_without_weights
    (base / "config.json").write_text(json.dumps({"model_type": "mistral3"}))
    with pytest.raises(ValueError, match="no causal language model of type 'mistral3'"):
        Oracle.from_pretrained(base, adapter, device="cpu")


@pytest.mark.parametrize(
    "value",
    [
        *({"r": "four"}, {"r": 0}, {"target_modules": 5}, {"rank_pattern": 3}),
        *({"lora_alpha": None}, {"lora_alpha": math.nan}, {"lora_alpha": 1e308}),
        {"init_lora_weights": "pissa"},
    ],
)
def test_an_adapter_config_of_which_none_can_be_made_is_one_sentence(saved_without_weights, value):
    base, adapter = saved_without_weights
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | value))
    with pytest.raises(UserError, match=str(adapter)):
        Oracle.from_pretrained(base, adapter, device="cpu")


def test_a_model_of_the_hub_is_loaded_from_the_folder_that_it_was_fetched_to(saved, monkeypatch):
    base, adapter = saved
    fetched = {"me/base": base, "me/oracle": adapter}
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: str(fetched[name]))
    # By its id nothing is found here, and without a network not even sought for long.
    oracle = Oracle.from_pretrained("me/base", "me/oracle", device="cpu")
    assert oracle.model.peft_config["default"].base_model_name_or_path == "me/base"


def test_shipped_weights_are_those_that_were_published():
    marks = sorted(hub.PACKAGE.rglob(hub.SHIPPED_MARK))
    assert [mark.parent.name for mark in marks] == ["base", "oracle", "smollm2-135m"]
    assert [why_not_whole(mark) for mark in marks] == [None] * 3


def test_a_changed_byte_of_shipped_weights_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "PACKAGE", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    mark_whole(tmp_path / hub.SHIPPED_MARK, [weights])
    hub.check_shipped(tmp_path)
    weights.write_bytes(b"weighty")
    with pytest.raises(UserError, match=r"weights in .* are damaged .*: install grpo_ao anew"):
        hub.check_shipped(tmp_path)
