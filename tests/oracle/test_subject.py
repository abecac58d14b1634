"""Subjects with an adapter: the planted one is read, the oracle's is not, and nothing is left."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from grpo_ao.errors import UserError
from grpo_ao.oracle.activations import SubjectTexts, extract_activations
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sampling import Sampling
from grpo_ao.oracle.store import ActivationStore
from grpo_ao.oracle.subject import check_subject, with_subject
from grpo_ao.probe import Positions, Probe
from tests.rigs import adapter_weights, make_oracle, planted_table
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer

TEXTS = ["The train leaves at noon.", "It rains."]
ALL = Positions.parse("all")


def save_subject(folder, seed, targets=("q_proj", "down_proj"), base=None, **settings):
    """An adapter of rank 2, on other layers than the oracle's in part, with random weights."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=[*targets], task_type="CAUSAL_LM")
    for name, value in settings.items():
        setattr(config, name, value)
    model = get_peft_model(tiny_model() if base is None else base, config)
    assert isinstance(model, PeftModel)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator)
    model.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture
def subject(tmp_path):
    return save_subject(tmp_path / "subject", 1)


def read(model, layers=(1, 3)):
    return extract_activations(model, tiny_tokenizer(), TEXTS, layers, ALL)


def completions(oracle):
    table = planted_table(oracle, 4)
    return oracle.complete(table.prompts, table.vectors, Sampling(max_new_tokens=6))


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        for layer, vectors_KD in other.items():
            torch.testing.assert_close(one[layer], vectors_KD, atol=1e-3, rtol=1e-3)


def probes_of(name):
    return [Probe(text, "What?", "open", (1, 3), ALL, None, "f", subject=name) for text in TEXTS]


def build(folder, oracle, name):
    probes = probes_of(name)
    texts = SubjectTexts(oracle.tokenizer)
    return ActivationStore.build(folder, oracle.model, texts, probes, "base"), probes


@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_read_is_the_base_with_the_subjects_adapter_alone(tmp_path, rslora):
    folder = save_subject(tmp_path / "subject", 1, use_rslora=rslora)
    merged = PeftModel.from_pretrained(tiny_model(), folder).merge_and_unload()
    oracle = make_oracle()
    plain = read(oracle.model)
    with with_subject(oracle.model, folder):
        found = read(oracle.model)
    assert_alike(found, read(merged))
    assert_alike(read(oracle.model), plain)
    assert_alike(plain, read(tiny_model()))
    assert not torch.allclose(found[0][1], plain[0][1], atol=0.1)


def test_the_oracle_answers_and_is_trained_as_without_a_subject(subject):
    oracle, untouched = make_oracle(), make_oracle()
    modules = [name for name, _ in oracle.model.named_modules()]
    trained = [name for name, p in oracle.model.named_parameters() if p.requires_grad]
    weights = adapter_weights(oracle)
    expected = completions(untouched)
    with with_subject(oracle.model, subject):
        read(oracle.model)
        assert completions(oracle) == expected
        assert trained == [n for n, p in oracle.model.named_parameters() if p.requires_grad]
    assert completions(oracle) == expected
    assert trained == [n for n, p in oracle.model.named_parameters() if p.requires_grad]
    assert modules == [name for name, _ in oracle.model.named_modules()]
    assert list(oracle.model.peft_config) == ["default"]
    for name, weight in adapter_weights(oracle).items():
        assert torch.equal(weight, weights[name])


def test_subjects_are_never_mixed_in_a_store_nor_left_out(tmp_path, subject):
    other = save_subject(tmp_path / "other", 2)
    oracle = make_oracle()
    plain, _ = build(tmp_path, oracle, "")
    stores = []
    for folder in (subject, other):
        with with_subject(oracle.model, folder, "tuned"):
            # The same name and the same probes, other weights.
            store, probes = build(tmp_path, oracle, "tuned")
            stores.append(store)
            for name in ("", "other"):
                with pytest.raises(ValueError, match="the one that would be read is 'tuned'"):
                    build(tmp_path, oracle, name)
    assert len({store.path for store in (plain, *stores)}) == 3
    vectors = [store.vectors(probes[0].id) for store in stores]
    vectors.append(plain.vectors(probes_of("")[0].id))
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(vectors[one], vectors[two], atol=0.1)
    with pytest.raises(ValueError, match=r"subjects \['tuned'\], the one that would be read is ''"):
        build(tmp_path, oracle, "tuned")


def test_the_base_model_keeps_the_ids_and_stores_that_it_had(tmp_path):
    (probe, _), named = probes_of(""), probes_of("tuned")
    assert probe.id == Probe(TEXTS[0], "What?", "open", (1, 3), ALL, None, "f").id
    assert probe.id != named[0].id


def test_a_fine_tuned_subject_is_asked_about(tmp_path, subject):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny_model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    make_oracle().save_adapter(adapter)
    oracle = Oracle.from_pretrained(base, adapter, device="cpu")
    said = [oracle.ask(TEXTS, ["What?"] * 2, subject_lora=s) for s in (None, subject, None)]
    assert said[0] == said[2] != said[1]


def test_an_adapter_that_changes_nothing_is_refused_and_taken_off(tmp_path, subject):
    untrained = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_model(), untrained).save_pretrained(tmp_path / "untrained")
    oracle, message = make_oracle(), "is untrained: it is the base model"
    with (
        pytest.raises(UserError, match=message),
        with_subject(oracle.model, tmp_path / "untrained"),
    ):
        pass
    assert list(oracle.model.peft_config) == ["default"]
    tiny_model().save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=message):  # before a model is loaded
        check_subject(tmp_path / "base", tmp_path / "untrained")


def test_an_adapter_of_another_base_or_kind_is_refused_by_name_with_the_widths(tmp_path, subject):
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    check_subject(base, subject)
    config = tiny_config("qwen3")
    assert isinstance(config, Qwen3Config)
    config.hidden_size = 48
    wide = Qwen3ForCausalLM(config)
    wide.name_or_path = "some/wide-model"
    folder = save_subject(tmp_path / "wide", 1, base=wide)
    with pytest.raises(UserError) as refused:
        check_subject(base, folder)
    said = str(refused.value)
    assert (
        f"an adapter of some/wide-model, cannot be read on the oracle's base model {base}" in said
    )
    assert "of width 32" in said
    assert "48" in said
    settings = json.loads((tmp_path / "subject" / "adapter_config.json").read_text())
    (tmp_path / "subject" / "adapter_config.json").write_text(
        json.dumps(settings | {"use_dora": True})
    )
    with pytest.raises(UserError, match=r"cannot be read: .* no plain LoRA: it sets use_dora"):
        check_subject(base, subject)
