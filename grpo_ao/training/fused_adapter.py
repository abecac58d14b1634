"""LoRA layers in few kernels, for the passes of training.

PEFT's layer multiplies by A, by B and by the scale, and adds, each with all of its output in
memory; and autocast rounds A and B of each layer on their own. For a small model a GPU waits for
Python meanwhile. Here all weights are rounded at once before a pass, and the product with B is
scaled and summed into the base layer's output, which is rounded once where PEFT's is three times.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_ao.oracle.layers import decoder_of

_Weights = dict[nn.Module, tuple[Tensor, Tensor, str]]
"""A and B of each layer, rounded, and their adapter's name."""


@contextmanager
def fused_adapter(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside the block, pass through plain LoRA layers with weights in the format of the pass.

    That is autocast's, or the base weights'. The weights are those at the start of the decoder's
    pass; a backward pass that computes layers anew uses those of the last one. Other layers, and
    those of which no adapter or several are active, stay PEFT's.
    """
    decoder = decoder_of(model)
    layers = [m for m in decoder.modules() if type(m) is LoraLinear and _is_plain(m)]
    held: _Weights = {}

    def hold(*_: object) -> None:
        held.clear()
        held.update(_rounded(layers))

    hook = decoder.register_forward_pre_hook(hold)
    for layer in layers:
        layer.forward = partial(_forward, layer, held)
    try:
        yield
    finally:
        hook.remove()
        for layer in layers:
            del layer.forward


def _is_plain(layer: LoraLinear) -> bool:
    plain = type(layer.get_base_layer()) is nn.Linear and "forward" not in vars(layer)
    return plain and not layer.lora_variant and not any(layer.lora_bias.values())


def _rounded(layers: list[LoraLinear]) -> _Weights:
    alone = [
        (layer, layer.active_adapters[0])
        for layer in layers
        if len(layer.active_adapters) == 1 and layer.active_adapters[0] in layer.lora_A
        if not layer.disable_adapters and not layer.merged
    ]
    if not alone:
        return {}
    weights = [layer.get_parameter(f"lora_A.{name}.weight") for layer, name in alone]
    weights += [layer.get_parameter(f"lora_B.{name}.weight") for layer, name in alone]
    rounded_N = torch.cat([weight.flatten() for weight in weights]).to(_format(alone[0][0]))
    parts = rounded_N.split([weight.numel() for weight in weights])
    parts = [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]
    half = len(alone)
    return {layer: (parts[n], parts[half + n], name) for n, (layer, name) in enumerate(alone)}


def _format(layer: LoraLinear) -> torch.dtype:
    weight = layer.get_base_layer().get_parameter("weight")
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _forward(layer: LoraLinear, held: _Weights, x: Tensor, *args: object, **kwargs: object):
    if layer not in held or layer.disable_adapters:
        return type(layer).forward(layer, x, *args, **kwargs)
    a_RI, b_OR, name = held[layer]
    x_NI = x.flatten(0, -2)
    y_NO = layer.base_layer(x_NI)
    hidden_NR = nn.functional.linear(layer.lora_dropout[name](x_NI), a_RI)
    y_NO.addmm_(hidden_NR, b_OR.T, alpha=layer.scaling[name])
    return y_NO.unflatten(0, x.shape[:-1])
