"""Attention masks of one's own making, in the form that each model family takes them."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from grpo_ao.oracle.layers import decoder_of, unwrap

MaskArgument = Tensor | dict[str, Tensor]
"""What a model's forward takes as ``attention_mask``: one mask, or one for each kind of layer."""

_KINDS = {"full_attention", "sliding_attention"}


def has_states(model: PreTrainedModel | PeftModel) -> bool:
    """Say whether some layers keep a state in place of keys and values (``linear_attention``)."""
    return bool(_kinds_of(model) - _KINDS - {"chunked_attention"})


def _kinds_of(model: PreTrainedModel | PeftModel) -> set[str]:
    return set(getattr(decoder_of(model).config, "layer_types", None) or [])


def reason_unmaskable(model: PreTrainedModel | PeftModel) -> str | None:
    """Return why a model cannot be given a mask of one's own; None if it can."""
    decoder = decoder_of(model)
    if others := _kinds_of(model) - _KINDS:
        return f"it has layers of kind {', '.join(sorted(others))}"
    if not unwrap(model)._supports_attention_backend:
        return "its attention is not of transformers' attention interface"
    if "flash" in (decoder.config._attn_implementation or ""):
        return "flash attention takes no mask"
    return None


def mask_argument(
    model: PreTrainedModel | PeftModel, visible: Callable[[int | None], Bool[Tensor, "*shape"]]
) -> MaskArgument:
    """Return the mask for a forward pass; ``visible(window)`` says who sees whom.

    ``window`` is the number of positions that a layer of sliding attention sees, None where it sees
    all. The masks are additive and of the model's dtype, which every implementation of attention
    takes.
    """
    config = decoder_of(model).config
    dtype = decoder_of(model).dtype
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return additive(visible(window), dtype)
    windows = {kind: window if kind == "sliding_attention" else None for kind in kinds}
    return {kind: additive(visible(size), dtype) for kind, size in windows.items()}


def additive(visible: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Return 0 where ``visible`` and the least number of ``dtype`` elsewhere."""
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill_(~visible, torch.finfo(dtype).min)
