"""Passes of training as CUDA graphs: captured for a shape, and replayed.

A pass of a small model is thousands of kernels of a few microseconds each, and Python and autograd
take longer to start them than the GPU to work them off. So the decoder's pass, from token ids to
the last hidden states, and its backward pass are captured where a shape comes a second time.

- What flows in is copied to fixed addresses: token ids, positions, masks, the injection, and the
  adapter's weights as one vector. So all adapters of a model share a graph, the reference and the
  starting oracle among them, and autograd goes on from that vector to the parameters.
- Rows and lengths are rounded up to few sizes. Padding is behind everything, and seen by nothing.
- All graphs share one pool of memory, of the size of the largest, beside inputs and outputs of
  their own. There are so many and no more: capturing takes as long as some passes, so that none
  makes room for another. A pass between another and its backward pass is not replayed, since it
  would write where the backward pass reads.

The forward pass is the model's own. What cannot be captured passes as usual: on a CPU, with
gradient checkpointing, dropout, experts, weights that are sharded, offloaded or in 4 bits, and
where memory is short.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import ref

import torch
from jaxtyping import Bool, Int64
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from grpo_ao.oracle.injection import Injection
from grpo_ao.oracle.layers import decoder_layers, decoder_of, input_device, mixes_experts
from grpo_ao.oracle.masks import mask_argument, reason_unmaskable
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sharding import is_sharded
from grpo_ao.training.fused_adapter import FusedAdapter

MOST_GRAPHS = 16
# A size is rounded up to a multiple of this part of the next power of two.
_PARTS = 16
# What a graph needs must be free this many times: passes that are not replayed need memory, too.
_SHARE_OF_MEMORY = 3
# A pass without gradients needs less than so many tensors of the size of its output.
_TENSORS_OF_A_PASS = 32
_ARGUMENTS = {"input_ids", "attention_mask", "position_ids"}


def rounded_up(size: int) -> int:
    """Return one of few sizes that is no less, and by less than an eighth more than needed."""
    step = max(1, (1 << (size - 1).bit_length()) // _PARTS) if size > 1 else 1
    return -(-size // step) * step


@dataclass(frozen=True)
class Pass:
    """What a pass of the decoder reads, in tensors of rounded sizes, and the sizes it came with."""

    rows: int
    length: int
    input_ids_BL: Int64[Tensor, "batch length"]
    position_ids_BL: Int64[Tensor, "batch length"] | None
    masks: dict[str, Tensor]
    injection: Injection

    @classmethod
    def of(
        cls,
        model: PreTrainedModel | PeftModel,
        arguments: Mapping[str, Any],
        injection: Injection,
    ) -> "Pass":
        """Pad the decoder's arguments behind their ends, with masks of all that each token sees."""
        ids_BL = arguments["input_ids"]
        rows, length = ids_BL.shape
        more_rows, more = rounded_up(rows) - rows, rounded_up(length) - length
        mask = arguments["attention_mask"]
        if isinstance(mask, Tensor) and mask.dim() == 2:
            mask = mask_argument(model, partial(_visible, mask))
        positions_BL = arguments.get("position_ids")
        slots = injection.positions_BK.shape[1]
        more_slots = rounded_up(slots) - slots
        return cls(
            rows,
            length,
            pad(ids_BL, (0, more, 0, more_rows)),
            None if positions_BL is None else pad(positions_BL, (0, more, 0, more_rows)),
            {
                kind: pad(
                    mask_B1LL,
                    (0, more, 0, more, 0, 0, 0, more_rows),
                    value=torch.finfo(mask_B1LL.dtype).min,
                )
                for kind, mask_B1LL in (mask if isinstance(mask, dict) else {"": mask}).items()
            },
            Injection(
                pad(injection.positions_BK, (0, more_slots, 0, more_rows), value=-1),
                pad(injection.vectors_BKD, (0, 0, 0, more_slots, 0, more_rows)),
            ),
        )

    def arguments(self) -> dict[str, Any]:
        """Return what the decoder is called with."""
        return {
            "input_ids": self.input_ids_BL,
            "attention_mask": self.masks.get("", self.masks),
            "position_ids": self.position_ids_BL,
            "use_cache": False,
        }

    def tensors(self) -> list[Tensor]:
        """Return all that is read, in one order."""
        positions = [] if self.position_ids_BL is None else [self.position_ids_BL]
        return [self.input_ids_BL, *positions, *self.masks.values(), *self.injection]

    def copy(self) -> "Pass":
        """Return the same at addresses of its own."""
        positions_BL = self.position_ids_BL
        return Pass(
            self.rows,
            self.length,
            self.input_ids_BL.clone(),
            None if positions_BL is None else positions_BL.clone(),
            {kind: mask.clone() for kind, mask in self.masks.items()},
            Injection(*(tensor.clone() for tensor in self.injection)),
        )


def _visible(mask_BL: Int64[Tensor, "batch length"], window: int | None) -> Bool[Tensor, "b 1 l l"]:
    """Say what each token of padded rows sees: itself and those before it, of a window."""
    columns_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    behind_LL = columns_L[:, None] - columns_L[None, :]
    seen_LL = behind_LL >= 0
    if window is not None:
        seen_LL &= behind_LL < window
    return seen_LL & mask_BL[:, None, None, :].bool()


class _Token:
    """Lives as long as a backward pass may come."""


class _Graph:
    """A pass of one shape, and its backward pass if there is to be one."""

    def __init__(
        self,
        run: Callable[[Tensor, Pass], Tensor],
        weights_N: Tensor,
        read: Pass,
        learns: bool,
        memory: "_Memory",
    ) -> None:
        """Capture ``run``; ``read`` and ``weights_N`` are this graph's own, and written to."""
        self._read, self._weights_N = read, weights_N.requires_grad_(learns)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self._token: Callable[[], _Token | None] = lambda: None
        stream, pool = memory
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.set_grad_enabled(learns):
            # Sets up what must not be set up within a capture.
            hidden_BLD = run(weights_N, read)
            if learns:
                torch.autograd.grad(hidden_BLD, weights_N, torch.ones_like(hidden_BLD))
            del hidden_BLD
            with torch.cuda.graph(self._forward, pool=pool.id, stream=stream):
                hidden_BLD = run(weights_N, read)
            if learns:
                self._gradient_BLD = torch.empty_like(hidden_BLD)
                with torch.cuda.graph(self._backward, pool=pool.id, stream=stream):
                    given = hidden_BLD, weights_N, self._gradient_BLD
                    (self._gradient_N,) = torch.autograd.grad(*given)
        torch.cuda.current_stream().wait_stream(stream)
        self._hidden_BLD = hidden_BLD.detach()

    @property
    def waits(self) -> bool:
        """Whether its backward pass may still come."""
        return self._token() is not None

    def pass_through(self, weights_N: Tensor, read: Pass) -> Tensor:
        """Return the last hidden states, without what was padded."""
        for own, given in zip(self._read.tensors(), read.tensors(), strict=True):
            own.copy_(given)
        hidden_BLD: Any = _Replayed.apply(weights_N, self)
        return hidden_BLD[: read.rows, : read.length]

    def forward(self, weights_N: Tensor, token: _Token) -> Tensor:
        """Replay the forward pass."""
        self._weights_N.data.copy_(weights_N)
        self._forward.replay()
        self._token = ref(token)
        return self._hidden_BLD.clone()

    def backward(self, gradient_BLD: Tensor) -> Tensor:
        """Replay the backward pass; return the gradient of the weights."""
        self._gradient_BLD.copy_(gradient_BLD)
        self._backward.replay()
        return self._gradient_N.clone()


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_N: Tensor, graph: _Graph) -> Tensor:
        ctx.graph, ctx.token = graph, _Token()
        return graph.forward(weights_N, ctx.token)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.token = None
        return ctx.graph.backward(*gradients), None


class _Memory(NamedTuple):
    """Where graphs are captured."""

    stream: torch.cuda.Stream
    pool: Any  # torch.cuda.MemPool, whose id has two types in torch's own annotations


class CapturedDecoder:
    """The decoder of an oracle, whose passes are replayed inside ``on``."""

    def __init__(self, oracle: Oracle, adapter: FusedAdapter) -> None:
        self._model, self._hook, self._adapter = oracle.model, oracle.hook, adapter
        self._decoder = decoder_of(oracle.model)
        self._can = _is_capturable(oracle.model, adapter)
        self._drops = _drops(self._decoder)
        # Shapes that came once, and the bytes that they took.
        self._taken: dict[Hashable, float] = {}
        # None where there was no room.
        self._graphs: dict[Hashable, _Graph | None] = {}
        self._memory: _Memory | None = None

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside the block, replay passes with the weights that the adapter holds, rounded."""
        if not self._can:
            yield
            return
        self._decoder.forward = self._forward
        try:
            yield
        finally:
            del self._decoder.forward

    def free(self) -> None:
        """Hand back all graphs and their memory."""
        self._graphs.clear()
        self._memory = None
        if self._can:
            torch.cuda.empty_cache()

    def _forward(self, *args: object, **arguments: Any) -> object:
        weights_N, injection = self._adapter.weights_N, self._hook.bound
        if args or weights_N is None or injection is None or not self._can_replay(arguments):
            return self._usual(*args, **arguments)
        read = Pass.of(self._model, arguments, injection.to(weights_N.device))
        learns = torch.is_grad_enabled() and weights_N.requires_grad
        sizes = [(tuple(tensor.shape), tensor.dtype) for tensor in (weights_N, *read.tensors())]
        key = (learns, *sizes, self._adapter.scales)
        if key not in self._taken:
            before = torch.cuda.memory_allocated()
            output = self._usual(**arguments)
            taken = torch.cuda.memory_allocated() - before
            self._taken[key] = taken + _TENSORS_OF_A_PASS * output.last_hidden_state.nbytes
            return output
        graph = self._graph(key, weights_N, read, learns)
        if graph is None:
            return self._usual(**arguments)
        return BaseModelOutputWithPast(last_hidden_state=graph.pass_through(weights_N, read))

    def _usual(self, *args: object, **arguments: object) -> Any:
        return type(self._decoder).forward(self._decoder, *args, **arguments)

    def _can_replay(self, arguments: Mapping[str, object]) -> bool:
        given = {
            name for name, value in arguments.items() if value is not None and value is not False
        }
        known = {"input_ids", "attention_mask"} <= given <= _ARGUMENTS
        return known and not (self._decoder.training and (self._drops or _checkpoints(self._model)))

    def _graph(self, key: Hashable, weights_N: Tensor, read: Pass, learns: bool) -> _Graph | None:
        """Return the graph of this shape; None where there is no room, or another waits."""
        if any(graph is not None and graph.waits for graph in self._graphs.values()):
            return None
        if key not in self._graphs and len(self._graphs) < MOST_GRAPHS:
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info(weights_N.device)
            fits = free >= _SHARE_OF_MEMORY * self._taken[key]
            self._graphs[key] = self._capture(weights_N, read, learns) if fits else None
        return self._graphs.get(key)

    def _capture(self, weights_N: Tensor, read: Pass, learns: bool) -> _Graph:
        if self._memory is None:
            self._memory = _Memory(torch.cuda.Stream(), torch.cuda.MemPool())
        bound, own = self._hook.bound, read.copy()
        self._hook.bind(own.injection)
        try:
            return _Graph(self._run, weights_N.detach().clone(), own, learns, self._memory)
        finally:
            if bound is not None:
                self._hook.bind(bound)
            self._adapter.hold(weights_N)

    def _run(self, weights_N: Tensor, read: Pass) -> Tensor:
        self._adapter.hold(weights_N)
        return self._usual(**read.arguments()).last_hidden_state


def _is_capturable(model: PreTrainedModel | PeftModel, adapter: FusedAdapter) -> bool:
    """Say whether nothing about the model itself speaks against it."""
    decoder = decoder_of(model)
    wrapped = any("forward" in vars(module) for module in decoder.modules())
    adapted = {id(parameter) for layer in adapter.layers for parameter in layer.parameters()}
    others = any(p.requires_grad and id(p) not in adapted for p in decoder.parameters())
    return (
        input_device(model).type == "cuda"
        and not (wrapped or others or mixes_experts(model) or is_sharded(model))
        and adapter.is_whole
        and reason_unmaskable(model) is None
    )


def _checkpoints(model: PreTrainedModel | PeftModel) -> bool:
    layer = decoder_layers(model)[0]
    return isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing


def _drops(decoder: PreTrainedModel) -> bool:
    dropouts = [module for module in decoder.modules() if isinstance(module, nn.Dropout)]
    of_attention = getattr(decoder.config, "attention_dropout", 0)
    return bool(of_attention) or any(module.p > 0 for module in dropouts)
