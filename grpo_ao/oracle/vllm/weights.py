"""Merge a LoRA adapter into vLLM's weights, each time from the pristine base.

vLLM fuses linear layers that read the same input (``qkv_proj``, ``gate_up_proj``); the rows of a
fused weight that belong to one layer are a view of it. A merge computes ``W + scale * B A`` from
the base weights and writes it there, so that no rounding adds up over steps. Names are relative to
the decoder (``layers.0.self_attn.q_proj``), where transformers and vLLM agree.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from grpo_ao.errors import UserError
from grpo_ao.oracle.layers import decoder_of, unwrap
from grpo_ao.oracle.merging import ADAPTER, reason_not_plain


class LoraFactors(NamedTuple):
    """One layer's update: ``scale * b_OR @ a_RI`` is added to its weight."""

    a_RI: Float[Tensor, "rank inputs"]
    b_OR: Float[Tensor, "outputs rank"]
    scale: float


def linear_views(
    decoder: nn.Module, packed: Mapping[str, Sequence[str]]
) -> dict[str, Float[Tensor, "outputs inputs"]]:
    """Return vLLM's weight matrices by the names of the unfused layers, as views.

    ``packed`` is the model's ``packed_modules_mapping``: fused name -> the names of its parts.
    """
    views: dict[str, Tensor] = {}
    for name, parameter in decoder.named_parameters():
        module_name, _, kind = name.rpartition(".")
        if kind != "weight" or parameter.dim() != 2:
            continue
        parent, _, last = module_name.rpartition(".")
        if last not in packed:
            views[module_name] = parameter.data
            continue
        fused: Any = decoder.get_submodule(module_name)
        sizes: list[int] = fused.output_sizes
        if sum(sizes) != len(parameter):
            raise UserError("vLLM has split its weights over GPUs: run it on one GPU an engine.")
        parts = parameter.data.split(sizes)
        views |= {f"{parent}.{part}": v for part, v in zip(packed[last], parts, strict=True)}
    return views


def lora_factors(model: PeftModel) -> dict[str, LoraFactors]:
    """Return the adapter's factors by layer, those of the decoder alone.

    A vision tower's are left out, since an oracle sees no images. Raises UserError for what is
    no plain LoRA of linear layers.
    """
    config: Any = model.peft_config[ADAPTER]
    if reason := reason_not_plain(config):
        raise UserError(f"vLLM rollouts cannot merge the adapter: {reason}.")
    layers = _lora_layers(model)
    head = unwrap(model).get_output_embeddings()
    if isinstance(head, LoraLayer) or any(m.lora_embedding_A for m in layers.values()):
        raise UserError("vLLM rollouts do not merge an adapter on embeddings or the output layer.")
    return {
        name: LoraFactors(
            layer.lora_A[ADAPTER].weight.data,
            layer.lora_B[ADAPTER].weight.data,
            layer.scaling[ADAPTER],
        )
        for name, layer in layers.items()
    }


def _lora_layers(model: PeftModel) -> dict[str, Any]:
    return {n: m for n, m in decoder_of(model).named_modules() if isinstance(m, LoraLayer)}


def base_weights(model: PeftModel) -> dict[str, Float[Tensor, "outputs inputs"]]:
    """Return the base weights under the adapter by layer, not copied.

    Raises UserError for a quantised base: vLLM would have to be merged into at full precision.
    """
    layers = _lora_layers(model)
    weights = {name: layer.get_base_layer().weight.data for name, layer in layers.items()}
    if not all(weight.is_floating_point() for weight in weights.values()):
        raise UserError("vLLM rollouts need an unquantised base model: leave out --load_in_4bit.")
    return weights


@torch.no_grad()
def merge(
    views: Mapping[str, Tensor], base: Mapping[str, Tensor], factors: Mapping[str, LoraFactors]
) -> None:
    """Write ``base + scale * B A`` into ``views``, layer by layer, in the dtype of the views."""
    for name, (a_RI, b_OR, scale) in factors.items():
        if name not in views or views[name].shape != (len(b_OR), a_RI.shape[1]):
            shape = tuple(views[name].shape) if name in views else "no such layer"
            raise UserError(
                f"the adapter's {name} is for a layer of shape {(len(b_OR), a_RI.shape[1])}; "
                f"vLLM's model has {shape}."
            )
        view = views[name]
        w, b, a = base[name].to(view), b_OR.to(view), a_RI.to(view)
        torch.addmm(w, b, a, alpha=scale, out=view)
