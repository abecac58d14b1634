"""Read the subject: its residual stream over a text, the oracle's adapter off."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial

import torch
from jaxtyping import Float, Int64
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_ao.errors import UserError
from grpo_ao.oracle.batches import batched, padded
from grpo_ao.oracle.context import check_text, context_length
from grpo_ao.oracle.injection import injection_off
from grpo_ao.oracle.layers import check_layer, decoder_layers, decoder_of, input_device, unwrap
from grpo_ao.oracle.norms import fused_norms
from grpo_ao.oracle.sharding import is_sharded
from grpo_ao.oracle.subject import SUBJECT, subject_of
from grpo_ao.oracle.turn import SAMPLE, shown, user_turn
from grpo_ao.probe import Layers, Positions, Probe

BATCH_TOKENS = 16_384
# Where attention is not fused its scores lie in memory: rows x longest^2 for each head.
BATCH_SCORES = 2**24
# On a GPU, a batch of this many tokens is as fast as a larger one, and ends before a row that is
# shorter than this part of its longest, the rest of which would be padding.
_EVEN_TOKENS, _EVEN = 4096, 0.9

Read = tuple[Layers, range]
"""Layers, and the token positions to read at the output of each."""

Begun = Callable[[], list[list[Tensor]]]
"""Waits for what is read of each row of a batch, and returns it."""


def subject_token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise a text as the subject reads it: one user turn, no generation prompt."""
    return user_turn(tokenizer, text, answer_next=False).input_ids


def content_start(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens the chat template puts in front of a user's text.

    Those that open the turn and, in many templates, a system prompt before it.
    """
    return _content_start(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=8)
def _content_start(tokenizer: PreTrainedTokenizerBase, _template: str) -> int:
    turn = user_turn(tokenizer, SAMPLE, answer_next=False)
    start = turn.text.rindex(SAMPLE)
    return sum(stop <= start for _, stop in turn.offsets)


def select_positions(
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Sequence[int],
    positions: Positions,
    text: str,
    strict: bool = False,
    start: int | None = None,
) -> range:
    """Return the positions that are read of a tokenised text, all of them within it.

    The text begins at ``start``, by default behind what the template writes in front of a user's.

    Raises UserError for a text of which none can be read and, with ``strict``, for one that has
    fewer than the positions ask for.
    """
    try:
        first = content_start(tokenizer) if start is None else start
        chosen = positions.select(len(token_ids), first)
        if strict and positions.count is not None and len(chosen) < positions.count:
            raise UserError(
                f"it has {len(chosen)} of the {positions.count} positions of '{positions}': ask "
                "for fewer or give a longer text."
            )
    except UserError as error:
        raise UserError(f"cannot read {shown(text)}: {error}") from error
    return chosen


class SubjectTexts(dict[str, list[int]]):
    """Texts and their tokens as the subject reads them: each is tokenised once, when asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def __missing__(self, text: str) -> list[int]:
        """Tokenise a text that is asked for the first time."""
        self[text] = subject_token_ids(self.tokenizer, text)
        return self[text]

    def positions_read(self, probe: Probe, strict: bool = False) -> range:
        """Return the positions that a probe reads: see ``select_positions``."""
        where, text = probe.positions, probe.text
        return select_positions(self.tokenizer, self[text], where, text, strict)


def characters_read(
    tokenizer: PreTrainedTokenizerBase, text: str, positions: Positions
) -> tuple[int, int] | None:
    """Return the part of a text, as start and end, that the tokens at ``positions`` stand for.

    Tokens of the chat template behind the text stand for none of it; a token that stands for a part
    of a character counts with all of it. None where the template changes the text.
    """
    turn = user_turn(tokenizer, text, answer_next=False)
    chosen = select_positions(tokenizer, turn.input_ids, positions, text)
    body = text.strip()  # as some templates write it
    first, _ = turn.offsets[content_start(tokenizer)]
    place = turn.text.find(body, first)
    if place < 0:
        return None
    shift = text.index(body) - place
    ends = (turn.offsets[chosen[0]][0], turn.offsets[chosen[-1]][1])
    start, stop = (min(max(end + shift, 0), len(text)) for end in ends)
    return start, stop


@contextmanager
def adapter_off(model: PreTrainedModel | PeftModel, but: str | None = None) -> Iterator[None]:
    """Run the base model inside the block: every adapter off, no activations injected.

    ``but`` is the name of an adapter that is on nevertheless. Which parameters require gradients is
    the same after the block (PEFT turns the active adapter's on when it enables it again).
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    # PEFT's own context inspects every layer before and after, which takes longer than a step of a
    # small model.
    tuned = [m for m in model.modules() if isinstance(m, BaseTunerLayer) and not m.disable_adapters]
    active = [module.active_adapters for module in tuned]
    try:
        for module in tuned:
            if but is None:
                module.enable_adapters(False)
            else:
                module.set_adapter([but])
        with injection_off(model):
            yield
    finally:
        for module, adapters in zip(tuned, active, strict=True):
            if but is None:
                module.enable_adapters(True)
            else:
                module.set_adapter(adapters)
        model.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)


def subject_on(model: PreTrainedModel | PeftModel) -> AbstractContextManager[None]:
    """Run the subject inside the block: the base model, with its own adapter if it has one."""
    return adapter_off(model, but=SUBJECT if subject_of(model) else None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run without dropout and without gradients inside the block."""
    # Not eval() and train(), which visit each module by way of its parents, in five times as long.
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def extract_activations(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    layers: Sequence[int],
    positions: Positions,
    batch_size: int = 256,
) -> list[dict[int, Float[Tensor, "K D"]]]:
    """Read each text at the outputs of ``layers``: for each text, layer -> (K, D) on the CPU.

    All layers come from one forward pass, which ends at the deepest of them; the oracle's adapter
    is off. The dtype is the model's. K is the positions' count, or less where they are clipped.
    Raises UserError for a text that is too short or too long for the model, or a layer that it does
    not have.
    """
    rows = [subject_token_ids(tokenizer, text) for text in texts]
    context = context_length(unwrap(model).config)
    for row, text in zip(rows, texts, strict=True):
        check_text(context, len(row), text)
    chosen = [
        select_positions(tokenizer, row, positions, text)
        for row, text in zip(rows, texts, strict=True)
    ]
    reads = [[((layer,), where) for layer in layers] for where in chosen]
    outputs = read_residuals(model, rows, reads, batch_size)
    return [dict(zip(layers, tensors, strict=True)) for tensors in outputs]


def read_residuals(
    model: PreTrainedModel | PeftModel,
    token_rows: Sequence[Sequence[int]],
    reads: Sequence[Sequence[Read]],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[list[Float[Tensor, "K D"]]]:
    """Read tokenised texts; for each text one (K, D) tensor on the CPU per read, in order.

    A read of several layers gives the positions of the first, then those of the next.

    Texts of like length share a forward pass, padded on the right: at most ``batch_size`` texts
    and 16,384 tokens, fewer of long ones where attention is not fused. ``progress`` is called with
    the number of texts read.
    """
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, got {batch_size}.")
    num_layers = len(decoder_layers(model))
    for layer in _layers_of(reads):
        check_layer(num_layers, layer)
    # On a CPU a row's last bits depend on the batch that it is in: there, batches stay full.
    even_from = _EVEN_TOKENS if input_device(model).type == "cuda" else BATCH_TOKENS
    eager = decoder_of(model).config._attn_implementation == "eager"
    batches = read_batches([len(row) for row in token_rows], batch_size, even_from, eager)

    def begin(batch: list[int]) -> Begun:
        layers = _layers_of([reads[i] for i in batch])
        if not layers:
            return lambda: [[] for _ in batch]
        resid = layer_outputs(model, padded([token_rows[i] for i in batch], 0), layers)
        return _select(resid, [reads[i] for i in batch])

    results: list[list[Tensor]] = [[] for _ in token_rows]
    done = 0
    with subject_on(model), evaluating(model), fused_norms(model):
        for batch, found in zip(batches, one_behind(map(begin, batches)), strict=True):
            for i, tensors in zip(batch, found, strict=True):
                results[i] = tensors
            done += len(batch)
            if progress is not None:
                progress(done)
    return results


def one_behind(batches: Iterable[Begun]) -> Iterator[list[list[Tensor]]]:
    """Finish each batch after the next has begun, so that the GPU has work meanwhile."""
    waiting: Begun | None = None
    for begun in batches:
        if waiting is not None:
            yield waiting()
        waiting = begun
    if waiting is not None:
        yield waiting()


def read_batches(
    lengths: Sequence[int], batch_size: int, even_from: int, eager: bool
) -> list[list[int]]:
    """Group rows, longest first, so that no batch has more rows or padded tokens than it may.

    Nor, where attention is ``eager``, more scores a head.
    A batch of ``even_from`` padded tokens takes no row that is much shorter than its longest.
    """

    def fits(batch: list[int]) -> bool:
        rows, longest, shortest = len(batch), max(1, lengths[batch[0]]), lengths[batch[-1]]
        most_tokens = min(BATCH_TOKENS, BATCH_SCORES // longest) if eager else BATCH_TOKENS
        uneven = (rows - 1) * longest >= even_from and shortest < _EVEN * longest
        return not uneven and rows <= batch_size and rows * longest <= most_tokens

    return batched(sorted(range(len(lengths)), key=lambda i: -lengths[i]), fits)


def _layers_of(reads: Iterable[Sequence[Read]]) -> set[int]:
    return {layer for row in reads for layers, _ in row for layer in layers}


def _select(resid: dict[int, Tensor], reads: Sequence[Sequence[Read]]) -> Begun:
    """Begin to copy what is read of each row to the CPU; what is returned waits for it."""
    pieces = [
        resid[layer][b, where.start : where.stop]
        for b, row in enumerate(reads)
        for layers, where in row
        for layer in layers
    ]
    sizes = [len(layers) * len(where) for row in reads for layers, where in row]
    return partial(_divide, _to_cpu(torch.cat(pieces)), sizes, reads)


def _divide(
    arrived: Callable[[], Tensor], sizes: list[int], reads: Sequence[Sequence[Read]]
) -> list[list[Tensor]]:
    pieces = iter(arrived().split(sizes))
    # Copies, so that one text's tensors do not hold on to those of the whole batch.
    return [[next(pieces).clone() for _ in row] for row in reads]


def _to_cpu(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin a copy to the CPU; what is returned waits for it."""
    if not tensor.is_cuda:
        copied = tensor.cpu()
        return lambda: copied
    # To pinned memory, which torch keeps and uses again.
    copied = tensor.to("cpu", non_blocking=True)
    event = torch.cuda.current_stream(tensor.device).record_event()

    def wait() -> Tensor:
        event.synchronize()
        return copied

    return wait


class _DeepestLayerRead(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass at the last layer that is needed."""


def layer_outputs(
    model: PreTrainedModel | PeftModel, input_ids_BL: Int64[Tensor, "batch seq"], layers: set[int]
) -> dict[int, Float[Tensor, "batch seq width"]]:
    """Run a model as it is, as far as the deepest of ``layers``; return the output of each.

    Rows are padded on the right, with any id and without a mask: padding lies behind the text,
    where causal attention does not look. Its own outputs mean nothing.
    """
    decoder, modules = decoder_of(model), decoder_layers(model)
    # Divided weights are gathered by all processes in every layer, or by none.
    last = None if is_sharded(model) else max(layers)
    found: dict[int, Tensor] = {}

    def keep(layer: int, output: object) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if not isinstance(hidden, Tensor):
            raise TypeError(f"layer {layer} gave {type(hidden).__name__}, not a tensor.")
        found[layer] = hidden
        if layer == last:
            raise _DeepestLayerRead

    def keeper(layer: int) -> Callable[[nn.Module, object, object], None]:
        return lambda _module, _inputs, output: keep(layer, output)

    handles = [modules[layer].register_forward_hook(keeper(layer)) for layer in layers]
    try:
        decoder(input_ids=input_ids_BL.to(input_device(model)), use_cache=False)
    except _DeepestLayerRead:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found
