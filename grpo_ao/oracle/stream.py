"""Whether a model hands its residual stream from layer to layer as one tensor that hooks can reach.

Reading and injecting take the output of a decoder layer for what the next layer reads. A family
that does otherwise (a stream in several parts, a residual kept apart) would be read wrongly without
any error; so each model is tried once when an oracle is made of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_ao.errors import UserError
from grpo_ao.oracle.activations import adapter_off, evaluating
from grpo_ao.oracle.injection import inject
from grpo_ao.oracle.layers import decoder_layers, decoder_of, hidden_width, input_device, unwrap

_TOKENS = 4


def check_stream(model: PreTrainedModel | PeftModel) -> None:
    """Raise UserError unless each layer reads what the one before it put out, (B, L, D).

    In one forward pass of a few tokens a vector is planted in the output of every layer.
    """
    layers, shape = len(decoder_layers(model)), (1, _TOKENS, hidden_width(unwrap(model).config))
    ids_BL = torch.arange(_TOKENS, device=input_device(model))[None]
    decoder: nn.Module = decoder_of(model)
    with adapter_off(model), evaluating(model), _planted(model, shape) as (written, read):
        decoder(input_ids=ids_BL, use_cache=False)
    handed_on = zip(written, read[1:], strict=False)
    if len(written) != layers or not all(torch.equal(*pair) for pair in handed_on):
        raise _unreadable(model)


def _unreadable(model: PreTrainedModel | PeftModel) -> UserError:
    return UserError(
        f"{type(unwrap(model)).__name__} does not hand the output of each decoder layer to the "
        "next as one tensor: models of this family can be neither read nor injected into."
    )


@contextmanager
def _planted(
    model: PreTrainedModel | PeftModel, shape: tuple[int, int, int]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Plant in each layer's output; gather what layers put out, planted, and what they read."""
    written: list[Tensor] = []
    read: list[Tensor] = []

    def reads(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read.append(args[0] if args else kwargs["hidden_states"])

    def writes(_module: nn.Module, _args: object, output: Any) -> Any:
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        if not isinstance(hidden, Tensor) or hidden.shape != shape:
            raise _unreadable(model)
        vector_BKD = hidden.new_ones(1, 1, shape[2])
        written.append(inject(hidden, vector_BKD, torch.ones_like(vector_BKD[..., 0]).long()))
        return (written[-1], *rest) if isinstance(output, tuple) else written[-1]

    handles = []
    for layer in decoder_layers(model):
        handles.append(layer.register_forward_pre_hook(reads, with_kwargs=True))
        handles.append(layer.register_forward_hook(writes))
    try:
        yield written, read
    finally:
        for handle in handles:
            handle.remove()
