"""LoRA layers in few kernels, for the passes of training.

PEFT's layer multiplies by A, by B and by the scale, and adds, each with all of its output in
memory; and autocast rounds A and B of each layer on their own. For a small model a GPU waits for
Python meanwhile. Here all weights are rounded at once before a pass, and the product with B is
scaled and summed into the base layer's output, which is rounded once where PEFT's is three times.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_ao.oracle.layers import decoder_of


class _Held(NamedTuple):
    """The rounded weights of one layer, and their adapter's name."""

    a_RI: Tensor
    b_OR: Tensor
    name: str


class FusedAdapter:
    """The plain LoRA layers of a model's decoder.

    ``is_whole`` says whether these are all of the model's adapted layers: others stay PEFT's, as do
    those of which no adapter or several are active.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        self._decoder = decoder_of(model)
        modules = self._decoder.modules()
        self.layers = [m for m in modules if type(m) is LoraLinear and _is_plain(m)]
        adapted = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
        self.is_whole = len(self.layers) == len(adapted)
        self._alone: list[tuple[LoraLinear, str]] = []
        self._held: dict[nn.Module, _Held] = {}
        self.weights_N: Float[Tensor, " weights"] | None = None
        """The rounded weights of the pass under way, A's and then B's; None where PEFT's serve."""

    @property
    def scales(self) -> tuple[float, ...]:
        """By what the products of the pass under way are scaled."""
        return tuple(float(layer.scaling[name]) for layer, name in self._alone)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside the block, pass through these layers with weights in the format of the pass.

        That is autocast's, or the base weights'. The weights are those at the start of the
        decoder's pass; a backward pass that computes layers anew uses those of the last one.
        """
        hook = self._decoder.register_forward_pre_hook(self._round)
        for layer in self.layers:
            layer.forward = partial(_forward, layer, self)
        try:
            yield
        finally:
            hook.remove()
            self._forget()
            for layer in self.layers:
                del layer.forward

    def hold(self, weights_N: Float[Tensor, " weights"]) -> None:
        """Let the layers of the pass under way have these weights, in place of ``weights_N``."""
        weights = _weights(self._alone)
        parts = weights_N.split([weight.numel() for weight in weights])
        parts = [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]
        half = len(self._alone)
        for n, (layer, name) in enumerate(self._alone):
            self._held[layer] = _Held(parts[n], parts[half + n], name)

    def held_by(self, layer: LoraLinear) -> _Held | None:
        """Return what a layer passes through; None where PEFT's layer serves."""
        if not self._held and self.weights_N is not None:
            self.hold(self.weights_N)
        return None if layer.disable_adapters else self._held.get(layer)

    def _forget(self) -> None:
        self._alone = []
        self._held.clear()
        self.weights_N = None

    def _round(self, *_: object) -> None:
        self._forget()
        self._alone = [
            (layer, layer.active_adapters[0])
            for layer in self.layers
            if len(layer.active_adapters) == 1 and layer.active_adapters[0] in layer.lora_A
            if not layer.disable_adapters and not layer.merged
        ]
        if self._alone:
            weights_N = torch.cat([weight.flatten() for weight in _weights(self._alone)])
            self.weights_N = weights_N.to(_format(self._alone[0][0]))


def _is_plain(layer: LoraLinear) -> bool:
    plain = type(layer.get_base_layer()) is nn.Linear and "forward" not in vars(layer)
    return plain and not layer.lora_variant and not any(layer.lora_bias.values())


def _weights(layers: Sequence[tuple[LoraLinear, str]]) -> list[Tensor]:
    factors = [layer.lora_A[name] for layer, name in layers]
    factors += [layer.lora_B[name] for layer, name in layers]
    return [cast("Tensor", factor.weight) for factor in factors]


def _format(layer: LoraLinear) -> torch.dtype:
    weight = layer.get_base_layer().get_parameter("weight")
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _forward(layer: LoraLinear, adapter: FusedAdapter, x: Tensor, *args: object, **kwargs: object):
    if (held := adapter.held_by(layer)) is None:
        return type(layer).forward(layer, x, *args, **kwargs)
    a_RI, b_OR, name = held
    base, dropout, scale = layer.base_layer, layer.lora_dropout[name], layer.scaling[name]
    x_NI = x.flatten(0, -2)
    frozen = not base.weight.requires_grad and isinstance(dropout, nn.Identity)
    if frozen and x.dtype == base.weight.dtype == a_RI.dtype:
        y_NO = _Linear.apply(x_NI, base.weight, base.bias, a_RI, b_OR, scale)
    else:
        y_NO = base(x_NI)
        y_NO.addmm_(nn.functional.linear(dropout(x_NI), a_RI), b_OR.T, alpha=scale)
    return y_NO.unflatten(0, x.shape[:-1])


class _Linear(torch.autograd.Function):
    """``x W' + bias + scale * x A' B'``, W frozen: each sum is made by the product before it."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        w_OI: Tensor,
        bias_O: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        scale: float,
    ) -> Tensor:
        y_NO = nn.functional.linear(x_NI, w_OI, bias_O)
        hidden_NR = nn.functional.linear(x_NI, a_RI)
        y_NO.addmm_(hidden_NR, b_OR.T, alpha=scale)
        ctx.save_for_backward(x_NI, w_OI, a_RI, b_OR, hidden_NR)
        ctx.scale = scale
        return y_NO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy_NO,) = gradients
        x_NI, w_OI, a_RI, b_OR, hidden_NR = ctx.saved_tensors
        dhidden_NR = (dy_NO @ b_OR).mul_(ctx.scale)
        dx_NI = None
        if ctx.needs_input_grad[0]:
            dx_NI = (dy_NO @ w_OI).addmm_(dhidden_NR, a_RI)
        db_OR = (dy_NO.T @ hidden_NR).mul_(ctx.scale)
        return dx_NI, None, None, dhidden_NR.T @ x_NI, db_OR, None
