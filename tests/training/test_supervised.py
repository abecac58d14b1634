"""The logits of the supervised stage are the model's own, or the model is refused."""

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from grpo_ao.errors import UserError
from grpo_ao.training.supervised import check_head
from tests.families import model_of
from tests.tiny import add_adapter


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3"])
def test_models_that_answer_by_their_output_layer_pass(family):
    check_head(add_adapter(model_of(family)))


def granite(scale: float) -> GraniteForCausalLM:
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=scale,
    )
    return GraniteForCausalLM(config).eval()


def test_a_family_that_scales_its_logits_is_refused():
    check_head(add_adapter(granite(1.0)))
    with pytest.raises(UserError, match="GraniteForCausalLM changes its logits"):
        check_head(add_adapter(granite(8.0)))
