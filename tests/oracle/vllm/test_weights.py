import pytest
import torch
from peft import LoraConfig, get_peft_model

from grpo_ao.oracle.layers import decoder_of
from grpo_ao.oracle.vllm.weights import base_weights, linear_views, lora_factors, merge
from tests.oracle.vllm.fakes import FakeDecoder
from tests.tiny import ARCHITECTURES, LAYERS, add_adapter, tiny_model, tiny_multimodal, tiny_peft


def merged_by_peft(peft_model):
    """The decoder's weight matrices after PEFT's own merge."""
    decoder = decoder_of(peft_model.merge_and_unload())
    return {n.removesuffix(".weight"): p for n, p in decoder.named_parameters() if p.dim() == 2}


def fake_views(model):
    """vLLM-like fused weights of the model's shape, holding noise."""
    fake = FakeDecoder(4, 32, LAYERS)
    return fake, linear_views(fake, FakeDecoder.packed_modules_mapping)


@pytest.mark.parametrize("rank", [4, 16, 128])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "multimodal"])
def test_merged_weights_are_those_of_peft(architecture, rank):
    several = architecture == "multimodal"
    model = add_adapter(tiny_multimodal() if several else tiny_model(architecture), rank=rank)
    _, views = fake_views(model)
    merge(views, base_weights(model), lora_factors(model))
    expected = merged_by_peft(model)
    layers = [name for name in expected if name.startswith("layers.")]
    assert len(layers) == 4 * 7
    for name in layers:
        torch.testing.assert_close(views[name], expected[name])


def test_views_are_rows_of_the_fused_weights_in_the_order_of_their_parts():
    fake, views = fake_views(tiny_peft())
    fused = fake.attention(2).qkv_proj.weight
    parts = [views[f"layers.2.self_attn.{part}_proj"] for part in "qkv"]
    assert torch.equal(torch.cat(parts), fused)
    parts[1].fill_(7.0)
    assert (fused[32:48] == 7.0).all() and not (fused[:32] == 7.0).any()


def test_a_thousand_merges_of_moving_adapters_do_not_drift():
    model = tiny_peft()
    _, views = fake_views(model)
    base, factors = base_weights(model), lora_factors(model)
    before = {name: weight.clone() for name, weight in base.items()}
    last = [factor.b_OR.clone() for factor in factors.values()]
    merge(views, base, factors)
    once = {name: views[name].clone() for name in factors}
    for _ in range(1000):
        for factor in factors.values():
            factor.b_OR.mul_(-1.01)
        merge(views, base, factors)
    for factor, b_OR in zip(factors.values(), last, strict=True):
        factor.b_OR.copy_(b_OR)
    merge(views, base, factors)
    assert all(torch.equal(views[name], once[name]) for name in factors)
    assert all(torch.equal(base[name], before[name]) for name in base)


def test_a_merge_into_bfloat16_rounds_once():
    model = tiny_peft()
    model.get_base_model().to(torch.bfloat16)
    fake, _ = fake_views(model)
    views = linear_views(fake.bfloat16(), FakeDecoder.packed_modules_mapping)
    base, factors = base_weights(model), lora_factors(model)
    merge(views, base, factors)
    for name, (a_RI, b_OR, scale) in factors.items():
        exact = base[name].double() + scale * b_OR.double() @ a_RI.double()
        # Half a unit in the last place of 8 bits.
        assert ((views[name].double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


def test_an_adapter_on_some_of_the_layers_touches_those_alone():
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["v_proj"]))
    factors = lora_factors(model)
    assert set(factors) == {f"layers.{n}.self_attn.v_proj" for n in range(4)}
    fake, views = fake_views(model)
    before = fake.attention(0).qkv_proj.weight.clone()
    merge(views, base_weights(model), factors)
    changed = torch.ne(fake.attention(0).qkv_proj.weight, before).any(dim=1)
    assert not changed[:48].any() and changed[48:].all()


def test_the_scale_is_that_of_the_layer():
    config = LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj"])
    model = get_peft_model(tiny_model(), config)
    assert {factor.scale for factor in lora_factors(model).values()} == {8 / 4**0.5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True, "target_modules": ["q_proj"]}, "plain LoRA"),
        ({"bias": "lora_only", "target_modules": ["q_proj"]}, "plain LoRA"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "it sets lora_bias"),
        ({"trainable_token_indices": [3], "target_modules": ["q_proj"]}, "trainable_token_indices"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "plain LoRA"),
        ({"target_modules": ["q_proj", "lm_head"]}, "embeddings or the output layer"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embeddings or the output layer"),
    ],
)
def test_what_is_no_plain_lora_is_refused(settings, message):
    model = get_peft_model(tiny_model(), LoraConfig(r=2, **settings))
    with pytest.raises(ValueError, match=message):
        lora_factors(model)


def test_a_quantised_base_is_refused():
    model = tiny_peft()
    layer = decoder_of(model).get_submodule("layers.0.self_attn.q_proj.base_layer")
    assert isinstance(layer, torch.nn.Linear)
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="unquantised base model"):
        base_weights(model)


def test_a_model_of_another_shape_is_refused_by_name():
    model = tiny_peft()
    _, views = fake_views(model)
    del views["layers.3.mlp.up_proj"]
    with pytest.raises(ValueError, match=r"layers\.3\.mlp\.up_proj .* no such layer"):
        merge(views, base_weights(model), lora_factors(model))
    views["layers.3.mlp.up_proj"] = torch.empty(3, 3)
    with pytest.raises(ValueError, match=r"shape \(48, 32\); vLLM's model has \(3, 3\)"):
        merge(views, base_weights(model), lora_factors(model))


def test_weights_split_over_gpus_are_refused():
    fake = FakeDecoder(4, 32, 1)
    half = fake.attention(0).qkv_proj
    half.weight = torch.nn.Parameter(half.weight[:32])
    with pytest.raises(ValueError, match="one GPU an engine"):
        linear_views(fake, FakeDecoder.packed_modules_mapping)
