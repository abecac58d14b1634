from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer

from grpo_ao.oracle.layers import decoder_of, unwrap
from grpo_ao.oracle.merging import merged, reason_unmergeable
from tests.tiny import tiny_model, tiny_multimodal, tiny_peft

IDS = torch.arange(24).reshape(2, 12)


def logits(model):
    with torch.no_grad():
        return unwrap(model)(input_ids=IDS, use_cache=False).logits


def base_weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" not in n}


def adapted_layers(model):
    return [m for m in decoder_of(model).modules() if isinstance(m, BaseTunerLayer)]


def test_a_merged_model_computes_what_the_adapter_does_without_its_layers():
    model = tiny_peft()
    expected = logits(model)
    assert len(adapted_layers(model)) == 4 * 7
    with merged(model):
        assert adapted_layers(model) == []
        torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    assert len(adapted_layers(model)) == 4 * 7
    assert torch.equal(logits(model), expected)


def test_the_adapter_is_merged_as_it_is_at_the_time():
    model = tiny_peft()
    with merged(model):
        before = logits(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    expected = logits(model)
    with merged(model):
        torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-2)


def test_a_thousand_merges_change_no_bit_of_the_base():
    config = LoraConfig(r=4, target_modules=["v_proj"], init_lora_weights=False)
    model = get_peft_model(tiny_model(), config).to(torch.bfloat16)
    assert isinstance(model, PeftModel)
    before = base_weights(model)
    addresses = {n: p.data_ptr() for n, p in model.named_parameters()}
    for _ in range(1000):
        with merged(model):
            pass
    after = base_weights(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert addresses == {n: p.data_ptr() for n, p in model.named_parameters()}


def test_the_base_is_restored_behind_an_error():
    model = tiny_peft()
    before = base_weights(model)
    with pytest.raises(KeyError), merged(model):
        assert adapted_layers(model) == []
        raise KeyError
    after = base_weights(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fills a GPU's memory")
def test_the_base_is_restored_under_each_adapter_where_the_gpu_is_full():
    base = tiny_model()
    torch.nn.Module.to(base, "cuda")
    before = [weight.clone() for weight in base.parameters()]
    free, _ = torch.cuda.mem_get_info()
    filling = torch.empty(int(free - 2e9), dtype=torch.uint8, device="cuda")
    for modules in (["v_proj"], ["q_proj", "v_proj"]):
        config = LoraConfig(r=4, target_modules=modules, init_lora_weights=False)
        model = get_peft_model(base, config)
        assert isinstance(model, PeftModel)
        with merged(model):
            pass
        model.unload()
    del filling
    assert all(map(torch.equal, before, base.parameters()))


def test_the_merged_sum_is_rounded_once():
    model = tiny_peft().to(torch.bfloat16)
    layer = adapted_layers(model)[0]
    assert isinstance(layer, LoraLinear)
    weight = layer.get_base_layer().get_parameter("weight")
    a = layer.get_parameter("lora_A.default.weight").float()
    b = layer.get_parameter("lora_B.default.weight").float()
    expected = (weight.float() + layer.scaling["default"] * b @ a).to(torch.bfloat16)
    with merged(model):
        torch.testing.assert_close(weight, expected, atol=0, rtol=2**-7)
        assert (weight == expected).float().mean() > 0.99


def test_a_model_without_adapter_is_left_alone():
    model = tiny_model()
    assert reason_unmergeable(model) is None
    expected = logits(model)
    with merged(model):
        assert torch.equal(logits(model), expected)


def test_the_vision_tower_is_no_obstacle():
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny_multimodal(), config)
    assert isinstance(model, PeftModel)
    assert reason_unmergeable(model) is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "no plain LoRA: it sets use_dora"),
        ({"lora_bias": True}, "no plain LoRA: it sets lora_bias"),
        ({"target_modules": ["q_proj", "lm_head"]}, "output embeddings"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "Embedding"),
    ],
)
def test_what_is_more_than_plain_lora_is_refused(settings, reason):
    options: dict[str, Any] = {"r": 2, "target_modules": "all-linear"}
    config = LoraConfig(**(options | settings))
    model = get_peft_model(tiny_model(), config)
    assert isinstance(model, PeftModel)
    assert reason in str(reason_unmergeable(model))
    with pytest.raises(ValueError, match="cannot be merged"), merged(model):
        pass


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_alphas_and_scales_of_each_layer_are_merged(rslora):
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=rslora,
        rank_pattern={"q_proj": 2},
        alpha_pattern={"v_proj": 3, "layers.1.mlp.up_proj": 40},
        target_modules="all-linear",
        init_lora_weights=False,
    )
    model = get_peft_model(tiny_model(), config).eval()
    assert isinstance(model, PeftModel)
    expected = logits(model)
    with merged(model):
        torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
