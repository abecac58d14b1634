"""LoRA layers in few kernels: the outputs and gradients of PEFT's."""

from typing import cast

import pytest
import torch
from peft import LoraModel
from peft.tuners.lora import Linear as LoraLinear

from grpo_ao.oracle.layers import unwrap
from grpo_ao.training.fused_adapter import FusedAdapter
from tests.tiny import tiny_peft

IDS_BL = torch.randint(3, 200, (3, 9), generator=torch.Generator().manual_seed(2))


def scaled_peft():
    """A model whose layers have different scales, as rsLoRA or `alpha_pattern` give them."""
    model = tiny_peft()
    for number, layer in enumerate(lora_layers(model)):
        layer.scaling["default"] = 0.5 + number / 10
    return model


def lora_layers(model):
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


def logits_and_gradients(model):
    model.zero_grad()
    logits_BLV = model(input_ids=IDS_BL).logits
    logits_BLV.square().mean().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    return logits_BLV.detach(), gradients


@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_and_gradients_are_those_of_peft(checkpointing):
    model = scaled_peft().train()
    if checkpointing:
        unwrap(model).gradient_checkpointing_enable({"use_reentrant": False})
    expected, gradients = logits_and_gradients(model)
    with FusedAdapter(model).on():
        assert all("forward" in vars(layer) for layer in lora_layers(model))
        found, of_fused = logits_and_gradients(model)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(of_fused, gradients)
    # Other weights would have given others.
    lora_layers(model)[0].scaling["default"] *= 2
    with FusedAdapter(model).on():
        assert (logits_and_gradients(model)[0] - expected).abs().max() > 1e-3


def test_each_pass_has_the_weights_of_its_start():
    model = scaled_peft()
    with FusedAdapter(model).on(), torch.no_grad():
        before = model(input_ids=IDS_BL).logits
        for layer in lora_layers(model):
            layer.get_parameter("lora_B.default.weight").add_(0.1)
        after = model(input_ids=IDS_BL).logits
        with model.disable_adapter():
            off = model(input_ids=IDS_BL).logits
    torch.testing.assert_close(after, model(input_ids=IDS_BL).logits)
    torch.testing.assert_close(off, without_adapter(model))
    assert (after - before).abs().max() > 1e-3
    assert (off - before).abs().max() > 1e-3


def without_adapter(model):
    with model.disable_adapter():
        return model(input_ids=IDS_BL).logits


def test_weights_are_rounded_for_the_pass_and_kept_as_they_are():
    model = scaled_peft()
    weights = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    expected, gradients = logits_and_gradients(model)
    with FusedAdapter(model).on(), torch.autocast("cpu", torch.bfloat16):
        found, of_fused = logits_and_gradients(model)
    assert all(g.dtype == torch.float32 for g in of_fused)
    assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()
    for gradient, other in zip(gradients, of_fused, strict=True):
        assert torch.cosine_similarity(gradient.flatten(), other.flatten(), dim=0) > 0.98
    kept = [p for p in model.parameters() if p.requires_grad]
    assert all(torch.equal(p, w) for p, w in zip(kept, weights, strict=True))


def test_a_layer_that_is_more_than_lora_stays_pefts():
    model = scaled_peft()
    first, second, *_ = lora_layers(model)
    first.lora_bias["default"] = True
    second.merge()
    expected = model(input_ids=IDS_BL).logits
    with FusedAdapter(model).on():
        assert "forward" not in vars(first)
        torch.testing.assert_close(model(input_ids=IDS_BL).logits, expected)
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_active_adapter_alone_is_passed_through_and_two_are_left_to_peft():
    model = scaled_peft()
    model.add_adapter("ref", model.peft_config["default"])
    torch.manual_seed(3)
    for layer in lora_layers(model):
        torch.nn.init.normal_(layer.get_parameter("lora_B.ref.weight"), std=0.1)
    default = model(input_ids=IDS_BL).logits
    model.set_adapter("ref")
    reference = model(input_ids=IDS_BL).logits
    cast("LoraModel", model.base_model).set_adapter(["default", "ref"])
    both = model(input_ids=IDS_BL).logits
    with FusedAdapter(model).on():
        torch.testing.assert_close(model(input_ids=IDS_BL).logits, both)
        model.set_adapter("ref")
        torch.testing.assert_close(model(input_ids=IDS_BL).logits, reference)
        model.set_adapter("default")
        torch.testing.assert_close(model(input_ids=IDS_BL).logits, default)
    assert min((default - reference).abs().max(), (both - reference).abs().max()) > 1e-3
