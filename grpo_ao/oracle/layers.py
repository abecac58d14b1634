"""Where the decoder layers of a language model are, and how depth is counted."""

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from grpo_ao.errors import UserError


def unwrap(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the transformers model inside a PEFT wrapper, or the model itself."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        raise TypeError(f"expected a transformers or PEFT model, got {type(base).__name__}.")
    return base


def decoder_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the text decoder: of a multimodal model (Gemma 3), its language model."""
    return unwrap(model).get_decoder()


def decoder_layers(model: PreTrainedModel | PeftModel) -> nn.ModuleList:
    """Return the decoder's layers, first to last."""
    layers = getattr(decoder_of(model), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UserError(f"{type(unwrap(model)).__name__} keeps no list of decoder layers.")
    return layers


def input_device(model: PreTrainedModel | PeftModel) -> torch.device:
    """Return the device that token ids go to."""
    return torch.device(decoder_of(model).device)


def mixes_experts(model: PreTrainedModel | PeftModel) -> bool:
    """Return whether each token of the decoder goes to some of its experts."""
    config = decoder_of(model).config
    return any(getattr(config, name, 0) for name in ("num_experts", "num_local_experts"))


def num_decoder_layers(config: PreTrainedConfig) -> int:
    """Return the number of decoder layers; of a multimodal model, those of its text part."""
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def hidden_width(config: PreTrainedConfig) -> int:
    """Return the width D of the residual stream; of a multimodal model, that of its text part."""
    return int(config.get_text_config(decoder=True).hidden_size)


def layer_index(num_layers: int, percent: int | float) -> int:
    """Return the index of the layer at ``percent`` depth: ``int(num_layers * percent / 100)``.

    This is the rule of Activation Oracles (arXiv 2512.15674): Qwen3-8B's 36 layers at 25, 50 and
    75 % give 9, 18 and 27. The activation is the *output* of that layer.
    """
    index = int(num_layers * percent / 100)
    if percent < 0 or index >= num_layers:
        raise UserError(f"{percent} % depth is outside of a model of {num_layers} layers.")
    return index


def check_layer(num_layers: int, layer: int) -> None:
    """Raise if a model of ``num_layers`` has no decoder layer ``layer``."""
    if not 0 <= layer < num_layers:
        raise UserError(f"there is no layer {layer}: the model has layers 0 to {num_layers - 1}.")
