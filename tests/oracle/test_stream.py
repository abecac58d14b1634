"""A model whose residual stream hooks cannot reach is refused, whatever it does with the stream."""

import pytest
import torch
from torch import nn

from grpo_ao.oracle.layers import decoder_layers
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.oracle.stream import check_stream
from tests.tiny import add_adapter, tiny_model, tiny_tokenizer


class Changed(nn.Module):
    """A decoder layer whose input or output is not the stream as it is."""

    def __init__(self, layer, read=lambda x: x, write=lambda x: x):
        super().__init__()
        self.layer, self.read, self.write = layer, read, write

    def forward(self, hidden_states, *args, **kwargs):
        return self.write(self.layer(self.read(hidden_states), *args, **kwargs))


def test_a_sound_model_is_taken_and_left_as_it_was():
    model, ids_BL = tiny_model(), torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids_BL).logits
    check_stream(model)
    assert torch.equal(model(input_ids=ids_BL).logits, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda hidden: torch.stack([hidden, hidden]),
        lambda hidden: hidden[..., :-1],
        lambda hidden: {"hidden_states": hidden},
    ],
    ids=["several streams", "another width", "no tensor"],
)
def test_a_layer_that_puts_out_something_else_is_refused(write):
    model = tiny_model()
    decoder_layers(model)[1] = Changed(decoder_layers(model)[1], write=write)
    with pytest.raises(ValueError, match="Qwen3ForCausalLM does not hand the output"):
        check_stream(model)


def test_a_stream_that_is_changed_between_two_layers_is_refused():
    model = add_adapter(tiny_model())
    second = decoder_layers(model)[1]
    second.register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))
    with pytest.raises(ValueError, match="can be neither read nor injected into"):
        Oracle(model, tiny_tokenizer(), OracleSpec())


def test_a_layer_that_the_model_does_not_run_is_refused():
    model = tiny_model()
    model.config.num_hidden_layers -= 1
    with pytest.raises(ValueError, match="does not hand the output of each decoder layer"):
        check_stream(model)
