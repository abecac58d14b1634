"""Add activations to the residual stream at the placeholder positions of an oracle prompt."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int64
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from grpo_ao.errors import UserError
from grpo_ao.oracle.batches import moved, padded
from grpo_ao.oracle.layers import check_layer, decoder_layers
from grpo_ao.oracle.prompt import OraclePrompt, check_counts


def inject(
    resid_BLD: Float[Tensor, "batch seq width"],
    vectors_BKD: Float[Tensor, "batch slots width"],
    positions_BK: Int64[Tensor, "batch slots"],
    coefficient: int | float = 1.0,
) -> Float[Tensor, "batch seq width"]:
    """Return a new tensor with ``h + coefficient * ||h|| * v / ||v||`` at the given positions.

    The vector is added, in the dtype of ``h``, and ``h`` is not renormalised; norms and the
    division are float32. A position of -1 is an unused slot, whose vector is not read. Every other
    position and row is left as it is, and so is the input. Gradients flow to ``h``, also through
    its norm. Source: Activation Oracles, arXiv 2512.15674.

    Raises ValueError where shapes disagree, a position is outside the sequence or used twice in a
    row, or a vector has no direction (zero or not finite).
    """
    _check_shapes(resid_BLD, vectors_BKD, positions_BK)
    length = resid_BLD.shape[1]
    if _checked(vectors_BKD, positions_BK) >= length:
        raise ValueError(f"a position to inject at is outside of the {length} tokens of its row.")
    return _injected(resid_BLD, vectors_BKD, positions_BK, coefficient)


def _injected(
    resid_BLD: Float[Tensor, "batch seq width"],
    vectors_BKD: Float[Tensor, "batch slots width"],
    positions_BK: Int64[Tensor, "batch slots"],
    coefficient: int | float,
) -> Float[Tensor, "batch seq width"]:
    """Compute ``inject``, without a question that the CPU waits for: a CUDA graph may hold it."""
    used_BK1 = (positions_BK >= 0)[..., None]
    # An unused slot adds zero to the first token.
    place_BKD = positions_BK.clamp(min=0)[..., None].expand_as(vectors_BKD)
    h_BKD = resid_BLD.gather(1, place_BKD)
    v_BKD = vectors_BKD.float()
    unit_BKD = (v_BKD / v_BKD.norm(dim=-1, keepdim=True)).where(used_BK1, 0.0)
    delta_BKD = coefficient * h_BKD.float().norm(dim=-1, keepdim=True) * unit_BKD
    return resid_BLD.scatter_add(1, place_BKD, delta_BKD.to(resid_BLD.dtype))


def _check_shapes(resid_BLD: Tensor, vectors_BKD: Tensor, positions_BK: Tensor) -> None:
    expected = (*positions_BK.shape, resid_BLD.shape[-1])
    if vectors_BKD.shape != expected or len(positions_BK) != len(resid_BLD):
        raise ValueError(
            f"cannot inject vectors of shape {tuple(vectors_BKD.shape)} at positions of shape "
            f"{tuple(positions_BK.shape)} into a residual of shape {tuple(resid_BLD.shape)}."
        )


def _checked(vectors_BKD: Tensor, positions_BK: Tensor) -> int:
    """Check the values of what is to be injected; return the last position, -1 without any."""
    if not positions_BK.numel():
        return -1
    used_BK = positions_BK >= 0
    v_norm_BK = vectors_BKD.float().norm(dim=-1)
    sorted_BK = positions_BK.sort(dim=-1).values
    repeated = (sorted_BK[:, 1:] == sorted_BK[:, :-1]) & (sorted_BK[:, 1:] >= 0)
    no_direction = used_BK & ~(v_norm_BK.isfinite() & (v_norm_BK > 0))
    facts = [positions_BK.max(), positions_BK.min(), repeated.any(), no_direction.any()]
    last, first, is_repeated, is_directionless = torch.stack(facts).tolist()  # one transfer for all
    if first < -1:
        raise ValueError("a position to inject at is outside of its row.")
    if is_repeated:
        raise ValueError("a position to inject at is given twice in one row.")
    if is_directionless:
        raise UserError(
            "an activation to inject is zero or not finite, and so has no direction: the model's "
            "weights or its number format are at fault."
        )
    return last


class Injection(NamedTuple):
    """What one batch's rows are injected with.

    ``positions_BK`` (int64, -1 for an unused slot) index the padded sequence; ``vectors_BKD`` are
    the activations, of any norm.
    """

    positions_BK: Int64[Tensor, "batch slots"]
    vectors_BKD: Float[Tensor, "batch slots width"]

    @staticmethod
    def of(
        prompts: Sequence[OraclePrompt],
        vectors: Sequence[Tensor],
        padded_length: int | None = None,
    ) -> "Injection":
        """Stack the vectors of prompts, ``vectors[b]`` (K_b, D), at their placeholders.

        Prompts are padded on the left to ``padded_length``; without it they start in column 0.
        Raises ValueError, with the prompt and both counts, where these differ.
        """
        check_counts(prompts, vectors)
        ends = [padded_length or len(prompt.input_ids) for prompt in prompts]
        positions = [
            [place + end - len(prompt.input_ids) for place in prompt.positions]
            for prompt, end in zip(prompts, ends, strict=True)
        ]
        return Injection(padded(positions, -1), _stack_vectors(vectors))

    def to(self, device: torch.device | str) -> "Injection":
        """Return the injection on ``device``."""
        return Injection(*(moved(tensor, device) for tensor in self))


def _stack_vectors(rows: Sequence[Tensor]) -> Float[Tensor, "batch slots width"]:
    if len({row_KD.shape[-1] for row_KD in rows}) > 1:
        raise ValueError("the rows' vectors are of different widths.")
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


# A layer with two hooks would be injected into twice; and who reads the subject through the same
# model has to find the hook to silence it.
_HOOKS: "WeakKeyDictionary[nn.Module, InjectionHook]" = WeakKeyDictionary()


class InjectionHook:
    """One persistent forward hook on a decoder layer, told which rows it serves.

    Unbound, it leaves the layer's output alone. Bound, it injects into every forward pass that is
    long enough to hold the positions, passes a single token through (a cached decoding step), and
    raises at anything else, a batch of another size among it. It stays bound until the next
    ``bind`` or ``clear``: gradient checkpointing may run it again in the backward pass.
    """

    def __init__(self) -> None:
        self._handle: RemovableHandle | None = None
        self._layer: nn.Module | None = None
        self._injection: Injection | None = None
        self._suspended = False
        self._last_position = -1
        self.coefficient: int | float = 1.0

    def attach(
        self, model: PreTrainedModel | PeftModel, layer: int, coefficient: int | float = 1.0
    ) -> "InjectionHook":
        """Hook the output of decoder layer ``layer``; one hook a model, and one model a hook."""
        layers = decoder_layers(model)
        check_layer(len(layers), layer)
        if self._handle is not None:
            raise ValueError("this injection hook is attached already: detach it first.")
        if _hook_on(model) is not None:
            raise ValueError("the model has an injection hook already: detach that one first.")
        self._layer, self.coefficient = layers[layer], coefficient
        self._handle = self._layer.register_forward_hook(self._forward_hook)
        _HOOKS[self._layer] = self
        return self

    def detach(self) -> None:
        """Take the hook off its model, and clear it."""
        self.clear()
        if self._handle is not None and self._layer is not None:
            self._handle.remove()
            _HOOKS.pop(self._layer, None)
        self._handle = self._layer = None

    @property
    def bound(self) -> Injection | None:
        """What the hook serves now; None while it is silenced."""
        return None if self._suspended else self._injection

    def bind(self, injection: Injection) -> None:
        """Serve these rows until the next ``bind`` or ``clear``; without slots, inject nothing.

        They are checked where they are, and move to the layer's device with the first pass. Raises
        ValueError where a position is given twice in a row or a vector has no direction.
        """
        if self._handle is None:
            raise ValueError("attach the injection hook to a model before binding rows to it.")
        last = _checked(injection.vectors_BKD, injection.positions_BK)
        if last == 0:
            raise ValueError(
                "a batch whose placeholders end at the first token cannot be told from a cached "
                "decoding step: put the placeholders behind another token."
            )
        self._injection, self._last_position = injection, last

    def clear(self) -> None:
        """Serve nobody: forward passes go through untouched."""
        self._injection, self._last_position = None, -1

    @contextmanager
    def serving(self, injection: Injection) -> Iterator[None]:
        """Serve these rows inside the block, and nobody after it."""
        self.bind(injection)
        try:
            yield
        finally:
            self.clear()

    def _forward_hook(self, _module: nn.Module, _inputs: object, output: object) -> object:
        if self._injection is None or self._suspended:
            return output
        if isinstance(output, tuple):
            return (self._steer(output[0], self._injection), *output[1:])
        if not isinstance(output, Tensor):
            raise TypeError(f"cannot inject into a layer output of type {type(output).__name__}.")
        return self._steer(output, self._injection)

    def _steer(self, resid_BLD: Tensor, injection: Injection) -> Tensor:
        rows, length = resid_BLD.shape[:2]
        if rows != len(injection.positions_BK):
            raise ValueError(
                f"the batch has {rows} rows, the injection that is bound has "
                f"{len(injection.positions_BK)}: bind the rows of each forward pass before it."
            )
        if length == 1:
            return resid_BLD
        if length <= self._last_position:
            raise ValueError(
                f"a forward pass of {length} tokens does not reach the placeholder at position "
                f"{self._last_position}: a prompt must be read in one pass."
            )
        if injection.positions_BK.device != resid_BLD.device:
            injection = self._injection = injection.to(resid_BLD.device)
        _check_shapes(resid_BLD, injection.vectors_BKD, injection.positions_BK)
        return _injected(resid_BLD, injection.vectors_BKD, injection.positions_BK, self.coefficient)


def _hook_on(model: PreTrainedModel | PeftModel) -> InjectionHook | None:
    return next((_HOOKS[layer] for layer in decoder_layers(model) if layer in _HOOKS), None)


@contextmanager
def injection_off(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Silence the model's injection hook inside the block; what it serves stays bound."""
    hook = _hook_on(model)
    was_suspended = hook is not None and hook._suspended
    if hook is not None:
        hook._suspended = True
    try:
        yield
    finally:
        if hook is not None:
            hook._suspended = was_suspended
