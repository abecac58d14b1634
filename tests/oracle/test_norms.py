import pytest
import torch
from torch import nn

from grpo_ao.oracle import norms
from grpo_ao.oracle.layers import decoder_layers, decoder_of
from grpo_ao.oracle.norms import fused_norm, fused_norms, rms_norms
from tests.tiny import LAYERS, WIDTH, tiny_model, tiny_peft


@pytest.mark.parametrize(
    ("architecture", "count"),
    # Two norms a layer and the last one; Qwen3 has two more a layer, for queries and keys. Gemma's
    # are of 1 + weight.
    [("qwen3", 4 * LAYERS + 1), ("llama", 2 * LAYERS + 1), ("gemma2", 0), ("gemma3", 0)],
)
def test_norms_are_found_by_what_they_compute(architecture, count):
    assert len(rms_norms(tiny_model(architecture))) == count


class OtherNorm(nn.LayerNorm):
    def __init__(self, width: int) -> None:
        super().__init__(width, bias=False)
        self.variance_epsilon = self.eps


class GatedNorm(nn.Module):
    """As in Qwen3-Next; in Bamba the gate may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(WIDTH)), 1e-6

    def forward(self, hidden: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        hidden = hidden if gate is None else hidden * gate
        return nn.functional.rms_norm(hidden, (WIDTH,), self.weight, self.variance_epsilon)


def test_a_norm_with_a_gate_is_left_alone():
    model = tiny_model()
    decoder_layers(model)[0].input_layernorm = GatedNorm()
    assert len(rms_norms(model)) == 4 * LAYERS


def test_another_norm_and_a_wrapped_one_are_left_alone():
    model = tiny_model()
    first, second = decoder_layers(model)[:2]
    first.input_layernorm = OtherNorm(WIDTH)
    wrapped = second.get_submodule("input_layernorm")
    wrapped.forward = wrapped.forward
    found = rms_norms(model)
    assert len(found) == 4 * LAYERS - 1
    assert first.input_layernorm not in found and wrapped not in found


def test_the_kernel_computes_what_the_norm_computes():
    norm = decoder_layers(tiny_model())[0].get_submodule("input_layernorm")
    nn.init.normal_(norm.get_parameter("weight"))
    hidden_BLD = torch.randn(3, 5, WIDTH)
    torch.testing.assert_close(fused_norm(norm, hidden_BLD), norm(hidden_BLD))
    mixed_BLD = fused_norm(norm, hidden_BLD.bfloat16())
    assert torch.equal(mixed_BLD, norm(hidden_BLD.bfloat16()))


def test_the_norms_are_replaced_inside_the_block_only(monkeypatch):
    model, input_ids = tiny_peft(), torch.randint(3, 200, (2, 9))
    replaced = rms_norms(model)
    plain_BLD = decoder_of(model)(input_ids=input_ids).last_hidden_state
    monkeypatch.setattr(norms, "input_device", lambda _: torch.device("cuda"))
    with fused_norms(model):
        assert all("forward" in vars(norm) for norm in replaced)
        fused_BLD = decoder_of(model)(input_ids=input_ids).last_hidden_state
    torch.testing.assert_close(fused_BLD, plain_BLD)
    with pytest.raises(KeyboardInterrupt), fused_norms(model):
        raise KeyboardInterrupt
    assert not any("forward" in vars(module) for module in model.modules())


def test_on_a_cpu_no_norm_is_replaced():
    model = tiny_model()
    with fused_norms(model):
        assert not any("forward" in vars(module) for module in model.modules())
