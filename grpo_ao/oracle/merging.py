"""The adapter added into the base weights for a while, and the base weights back exactly."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from grpo_ao.errors import UserError
from grpo_ao.oracle.layers import decoder_of, unwrap

ADAPTER = "default"
"""PEFT's name of the oracle's adapter."""
# What generation needs beside the weights: the cache and the logits.
_HEADROOM_BYTES = 6e9

# Weights of linear layers that do not fit on the GPU twice: pinned memory is slow to make, so that
# it is made once a layer, whichever adapters come to lie on it.
_PINNED: "WeakKeyDictionary[nn.Module, Tensor]" = WeakKeyDictionary()


class _Place(NamedTuple):
    """An adapted layer of the decoder, and where in the model it is."""

    parent: nn.Module
    name: str
    layer: BaseTunerLayer


def _places(model: PreTrainedModel | PeftModel) -> list[_Place]:
    decoder = decoder_of(model)
    found = [(p, m) for p, m in decoder.named_modules() if isinstance(m, BaseTunerLayer)]
    paths = [(path.rpartition("."), layer) for path, layer in found]
    return [_Place(decoder.get_submodule(parent), name, m) for (parent, _, name), m in paths]


def reason_not_plain(config: LoraConfig) -> str | None:
    """Return what makes an adapter more than ``W0 + scaling * B A``; None for plain LoRA.

    Ranks, alphas and scales (rsLoRA) may differ from layer to layer.
    """
    more = {
        "use_dora": config.use_dora,
        "bias": config.bias != "none",
        "lora_bias": config.lora_bias,
        "modules_to_save": config.modules_to_save,
        "trainable_token_indices": config.trainable_token_indices,
        "target_parameters": config.target_parameters,
        "layer_replication": config.layer_replication,
    }
    found = [name for name, is_set in more.items() if is_set]
    return f"the adapter is no plain LoRA: it sets {', '.join(found)}" if found else None


def reason_unmergeable(model: PreTrainedModel | PeftModel) -> str | None:
    """Return why the active adapter cannot be added into the weights; None if it can be."""
    config = model.peft_config[ADAPTER] if isinstance(model, PeftModel) else None
    if isinstance(config, LoraConfig) and (reason := reason_not_plain(config)):
        return reason
    if isinstance(unwrap(model).get_output_embeddings(), BaseTunerLayer):
        return "the adapter changes the output embeddings"
    for _, name, layer in _places(model):
        if type(layer) is not LoraLinear:
            return f"{name} is a {type(layer).__module__}.{type(layer).__name__}"
        base = layer.get_base_layer()
        if type(base) is not nn.Linear:
            return f"the base of {name} is a {type(base).__name__}"
        if isinstance(base.weight, DTensor) or base.weight.dim() != 2:
            return f"the weights of {name} are spread over processes"
        if layer.lora_variant or any(layer.lora_bias.values()) or layer.merged:
            return f"{name} is more than a plain LoRA layer"
    return None


def merged(model: PreTrainedModel | PeftModel) -> AbstractContextManager[None]:
    """Return a block that runs with ``W0 + scaling * B A`` in the base layers, and no PEFT layers.

    The sum is rounded once, from the pristine W0. After the block every base weight is bit for bit
    what it was, at the same address, however often this is done. W0 is kept on its own device
    where that has room (the size of the adapted weights), in pinned CPU memory otherwise. Raises
    UserError if ``reason_unmergeable``.
    """
    if (reason := reason_unmergeable(model)) is not None:
        raise UserError(f"the adapter cannot be merged: {reason}.")
    return _merged(model)


def merged_if_possible(model: PreTrainedModel | PeftModel) -> AbstractContextManager[None]:
    """Return ``merged``, or a block that changes nothing where the adapter cannot be merged."""
    return nullcontext() if reason_unmergeable(model) else _merged(model)


@contextmanager
def _merged(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    places = _places(model)
    layers = [place.layer.get_base_layer() for place in places]
    weights = [layer.get_parameter("weight").data for layer in layers]
    pristine = _pristine(layers, weights)
    try:
        for place, layer, weight in zip(places, layers, weights, strict=True):
            _add_adapter(place.layer, weight)
            setattr(place.parent, place.name, layer)
        yield
    finally:
        for place, weight, kept in zip(places, weights, pristine, strict=True):
            setattr(place.parent, place.name, place.layer)
            weight.copy_(kept, non_blocking=True)


def _add_adapter(layer: BaseTunerLayer, weight: Tensor) -> None:
    if not isinstance(layer, LoraLinear) or layer.disable_adapters:
        return
    for name in layer.active_adapters:
        if name in layer.lora_A:
            # Products of bfloat16 numbers are summed in float32; the result is rounded once.
            a_RI = layer.get_parameter(f"lora_A.{name}.weight").data.to(weight.dtype)
            b_OR = layer.get_parameter(f"lora_B.{name}.weight").data.to(weight.dtype)
            weight.addmm_(b_OR, a_RI, alpha=layer.scaling[name])


def _pristine(layers: list[nn.Module], weights: list[Tensor]) -> list[Tensor]:
    """Copy the layers' weights, to where there is room."""
    needed = sum(weight.nbytes for weight in weights)
    if not weights or not weights[0].is_cuda or needed < _free_bytes(weights[0].device):
        return [weight.clone() for weight in weights]
    for layer, weight in zip(layers, weights, strict=True):
        if layer not in _PINNED:
            _PINNED[layer] = weight.cpu().pin_memory()
    return [_PINNED[layer] for layer in layers]


def _free_bytes(device: torch.device) -> float:
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + cached - _HEADROOM_BYTES
