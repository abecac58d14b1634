"""Token by token at the speed of the weights: a static cache and, on a GPU, one captured graph.

What differs from transformers' ``generate``, and why:

- A step has the same shapes and addresses as the one before it (the cache is as long as it will
  get, the mask says what is there), so that on a GPU it is captured once and replayed.
- Keys and values are not repeated for the query heads that share them: those heads become rows of
  one small matrix.
- On a GPU a decoder layer is compiled once and serves for all layers, since each is handed its own
  cache; eagerly, norms and rotations cost more than the weights.
- Tokens are drawn on the device; whether all sequences have ended is asked every few steps.
- All captures of the process share one stream and one pool of memory, and rows and lengths are
  rounded up to few sizes. With a stream and a pool for each, none of their memory is used again.

The forward pass is the model's own.
"""

import atexit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from grpo_ao.oracle.layers import decoder_layers, decoder_of, input_device, mixes_experts
from grpo_ao.oracle.masks import MaskArgument, mask_argument, reason_unmaskable
from grpo_ao.oracle.probabilities import watched_logp
from grpo_ao.oracle.sampling import Sampling

ATTENTION = "grpo_ao_decode"
# On a GPU, whether all have ended is asked every few steps, since the answer has to be waited for.
_STEPS_BETWEEN_CHECKS = 8
_LEAST_LENGTH = 64


def bucket(size: int, least: int = 1) -> int:
    """Round up to ``least`` times a power of two, or to the middle between two of them.

    So no more than a third of the result is in excess, and there are few different results.
    """
    power = least
    while power < size:
        power *= 2
    middle = power * 3 // 4
    return middle if power >= 4 * least and middle >= size else power


@dataclass(frozen=True)
class _SideMemory:
    """Where graphs are captured. The pool keeps its memory from one capture for the next."""

    stream: torch.cuda.Stream
    pool: Any  # torch.cuda.MemPool, whose id has two types in torch's own annotations


@cache
def _side_memory(device: torch.device) -> _SideMemory:
    with torch.cuda.device(device):
        return _SideMemory(torch.cuda.Stream(), torch.cuda.MemPool())


# torch 2.11's allocator of pinned memory forgets a pool whose last graph is gone, and then refuses
# to capture into it: the last graph of each pool lives until the next is captured.
_LAST_GRAPH: dict[object, torch.cuda.CUDAGraph] = {}
atexit.register(_LAST_GRAPH.clear)


def free_captures() -> None:
    """Hand back what captured decoding keeps, at the end of a phase that sampled."""
    _LAST_GRAPH.clear()  # before its pool, which must have no user when it goes
    _side_memory.cache_clear()
    torch.cuda.empty_cache()


def reason_undecodable(model: PreTrainedModel) -> str | None:
    """Return why ``decode`` cannot serve a model; None if it can."""
    if any("forward" in vars(layer) for layer in decoder_layers(model)):
        return "its layers are wrapped, as for offloading"
    config = decoder_of(model).config
    if getattr(config, "num_kv_shared_layers", 0):
        return "its layers share keys and values"
    on_gpu, dtype = input_device(model).type == "cuda", decoder_of(model).dtype
    if on_gpu and mixes_experts(model) and dtype != torch.bfloat16:
        # transformers multiplies them in a loop then, in compiled code.
        return "its experts are not in bfloat16, and ask the GPU how many tokens each has"
    return reason_unmaskable(model)


def grouped_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads 1 dim"],
    key: Float[Tensor, "batch kv_heads length dim"],
    value: Float[Tensor, "batch kv_heads length dim"],
    attention_mask: Float[Tensor, "batch 1 1 length"],
    scaling: float,
    softcap: float | None = None,
    s_aux: Float[Tensor, " heads"] | None = None,
    **_kwargs: object,
) -> tuple[Float[Tensor, "batch 1 heads dim"], None]:
    """Attend with one query token a sequence; query heads of one group are rows of one matrix.

    ``s_aux`` is each head's sink (GPT-OSS): a score that takes its share of the softmax, for no
    value.
    """
    batch, heads, _, dim = query.shape
    groups = key.shape[1]
    query_BHGD = query.view(batch, groups, heads // groups, dim)
    # The fused kernels know no softcap and no sink; on a CPU they are slower for a single query.
    if softcap is None and s_aux is None and query.is_cuda:
        output_BHGD = nn.functional.scaled_dot_product_attention(
            query_BHGD, key, value, attn_mask=attention_mask, scale=scaling
        )
    else:
        scores_BHGL = query_BHGD @ key.transpose(2, 3) * scaling
        if softcap is not None:
            scores_BHGL = softcap * torch.tanh(scores_BHGL / softcap)
        scores_BHGL = scores_BHGL + attention_mask
        if s_aux is not None:
            sink_BHG1 = s_aux.view(1, groups, -1, 1).expand(batch, -1, -1, -1)
            scores_BHGL = torch.cat([scores_BHGL, sink_BHG1.to(scores_BHGL.dtype)], dim=-1)
        weights_BHGL = scores_BHGL.softmax(dim=-1, dtype=torch.float32)[..., : key.shape[2]]
        output_BHGD = weights_BHGL.to(value.dtype) @ value
    return output_BHGD.reshape(batch, 1, heads, dim), None


AttentionInterface.register(ATTENTION, grouped_attention)


class LayerCache:
    """Keys and values of one layer, (batch, kv_heads, length, dim), written a column a step."""

    def __init__(self, keys: Tensor, values: Tensor, column_1: Tensor) -> None:
        self.keys, self.values, self.column_1 = keys, values, column_1

    def update(self, key: Tensor, value: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write this step's key and value; return all of them. The place is transformers'."""
        self.keys.index_copy_(2, self.column_1, key)
        self.values.index_copy_(2, self.column_1, value)
        return self.keys, self.values


class Decoder:
    """One batch of sequences that are decoded together; ``tokens_BN`` is what they have so far.

    ``logp_BNT`` are the log-probabilities of these tokens, and of the watched ones in their place.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prefix: DynamicCache,
        mask_BL: Int64[Tensor, "batch prompt"],
        last_B: Int64[Tensor, " batch"],
        sampling: Sampling,
        ends: Sequence[int],
        watched: Sequence[int] | None = None,
    ) -> None:
        """Start behind left-padded prompts.

        ``prefix`` is the cache of all prompt tokens but the last, which is ``last_B``; each prompt
        gets its samples' sequences, next to each other. Without ``watched`` no log-probabilities
        are taken.
        """
        device = last_B.device
        self.on_gpu = device.type == "cuda"
        num_samples, max_new_tokens = sampling.num_samples, sampling.max_new_tokens
        self.model, self.temperature, self.max_new_tokens = (
            model,
            sampling.temperature,
            max_new_tokens,
        )
        self.ends_E = torch.tensor(list(ends), device=device)
        prompt = mask_BL.shape[1]
        self.used_rows = rows = len(mask_BL) * num_samples
        length = prompt + max_new_tokens
        if self.on_gpu:
            rows, length = bucket(rows), bucket(length, _LEAST_LENGTH)
        # Rows in excess repeat the last one, and have ended.
        source_B = (torch.arange(rows, device=device) // num_samples).clamp(max=len(mask_BL) - 1)
        self.token_B1 = last_B[source_B][:, None]
        self.step_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.column_1 = torch.full((1,), prompt - 1, device=device)
        self.columns_L = torch.arange(length, device=device)
        self.pads_B1 = prompt - mask_BL.sum(dim=1, keepdim=True)[source_B]
        self.caches = [_grow(x, source_B, length, self.column_1) for x in prefix.layers]
        self.tokens_BN = torch.zeros(rows, max_new_tokens, dtype=torch.int64, device=device)
        others, columns = ([], 0) if watched is None else (list(watched), 1 + len(watched))
        self.watched_W = torch.tensor(others, dtype=torch.int64, device=device)
        self.logp_BNT = torch.zeros(rows, max_new_tokens, columns, device=device)
        self.logits_BV = torch.empty(0)
        self.ended_B = torch.arange(rows, device=device) >= self.used_rows

    def run(self) -> Int64[Tensor, "batch new"]:
        """Decode until all sequences have ended, or ``max_new_tokens``; return their tokens.

        What lies behind an end token has no meaning.
        """
        steps = self._run_captured() if self.on_gpu else self._run(self.step, 0)
        return self.tokens_BN[: self.used_rows, :steps]

    def _run_captured(self) -> int:
        side = _side_memory(self.tokens_BN.device)
        side.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side.stream):
            self.step()  # Compiles, and sets up what must not be set up within a capture.
            self._make_room()
            graph = torch.cuda.CUDAGraph()
            # Not torch.cuda.graph(), which hands all cached memory back to the driver first.
            graph.capture_begin(pool=side.pool.id)
            try:
                self.step()
            finally:
                graph.capture_end()
            _LAST_GRAPH[side.pool.id] = graph
            steps = self._run(graph.replay, 1)
        torch.cuda.current_stream().wait_stream(side.stream)
        return steps

    def _make_room(self) -> None:
        """Hand cached memory back where little is free: within a capture torch cannot."""
        free, _ = torch.cuda.mem_get_info(self.tokens_BN.device)
        if free < 8 * self.logits_BV.nbytes:
            torch.cuda.empty_cache()

    def _run(self, step: Callable[[], None], done: int) -> int:
        between = _STEPS_BETWEEN_CHECKS if self.on_gpu else 1
        while done < self.max_new_tokens:
            if done % between == 0 and bool(self.ended_B.all()):
                break
            step()
            done += 1
        return done

    def step(self) -> None:
        """Read one token a sequence, and draw the next."""
        position_B1 = self.column_1 - self.pads_B1
        with _own_caches(self.model, self.caches):
            output = self.model(
                input_ids=self.token_B1,
                attention_mask=self._masks(),
                position_ids=position_B1,
                use_cache=False,
            )
        self.logits_BV = output.logits[:, -1].float()
        token_B = sample(self.logits_BV, self.temperature)
        self.ended_B |= (token_B[:, None] == self.ends_E).any(dim=1)
        self.tokens_BN.index_copy_(1, self.step_1, token_B[:, None])
        if self.logp_BNT.shape[2]:
            logp_BT = watched_logp(self.logits_BV, token_B, self.watched_W)
            self.logp_BNT.index_copy_(1, self.step_1, logp_BT[:, None])
        self.token_B1.copy_(token_B[:, None])
        self.step_1 += 1
        self.column_1 += 1

    def _masks(self) -> MaskArgument:
        def visible(window: int | None) -> Tensor:
            seen_BL = (self.columns_L >= self.pads_B1) & (self.columns_L <= self.column_1)
            if window is not None:
                seen_BL = seen_BL & (self.columns_L > self.column_1 - window)
            return seen_BL[:, None, None]

        return mask_argument(self.model, visible)


def sample(logits_BV: Float[Tensor, "batch vocabulary"], temperature: float) -> Int64[Tensor, " b"]:
    """Draw a token a row from the whole distribution; at temperature 0 the likeliest."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    # The first of exponential clocks to ring, as in torch.multinomial, whose own draws of them are
    # slow on a CPU: argmax of p / clock, that is of logit - temperature * log(clock), in the one
    # tensor of (rows, vocabulary) that it takes.
    scores_BV = torch.rand_like(logits_BV).log_().neg_().log_()
    return scores_BV.mul_(-temperature).add_(logits_BV).argmax(dim=-1)


def _grow(layer: object, source_B: Tensor, length: int, column_1: Tensor) -> LayerCache:
    """Copy a prompt's keys and values into the cache of each of its samples.

    ``source_B`` says which prompt each row of the result continues.
    """
    if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
        raise TypeError(f"the cache of a layer is a {type(layer).__name__}, without keys.")

    def grown(prefix: Tensor) -> Tensor:
        _, heads, known, dim = prefix.shape
        full = prefix.new_zeros(len(source_B), heads, length, dim)
        full[:, :, :known] = prefix[source_B]
        return full

    return LayerCache(grown(layer.keys), grown(layer.values), column_1)


@contextmanager
def decode_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the model attend with ``grouped_attention`` inside the block."""
    decoder = decoder_of(model)
    usual = decoder.config._attn_implementation or "eager"
    decoder.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        decoder.set_attn_implementation(usual)


@cache
def _compiled(kind: type[nn.Module]) -> Callable[..., Any]:
    return torch.compile(kind.forward)


@contextmanager
def _own_caches(model: PreTrainedModel, caches: Sequence[LayerCache]) -> Iterator[None]:
    """Hand each decoder layer its own cache, whatever the model passes for all of them.

    So a layer does not need its number to find its cache, and one compiled layer serves for all.
    """
    layers = decoder_layers(model)
    for layer, own in zip(layers, caches, strict=True):
        forward = _compiled(type(layer)) if own.keys.is_cuda else type(layer).forward
        layer.forward = _with_cache(forward, layer, own)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _with_cache(forward: Callable[..., Any], layer: nn.Module, own: LayerCache) -> Callable:
    def call(*args: object, **kwargs: object) -> object:
        return forward(layer, *args, **(kwargs | {"past_key_values": own}))

    return call
