"""Completions of oracle prompts, activations injected, with the adapter merged."""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from grpo_ao.errors import UserError
from grpo_ao.oracle.activations import evaluating
from grpo_ao.oracle.batches import moved
from grpo_ao.oracle.decoding import Decoder, decode_attention, reason_undecodable
from grpo_ao.oracle.ends import cut_at_end, end_token_ids, pad_token_id
from grpo_ao.oracle.injection import Injection, InjectionHook
from grpo_ao.oracle.layers import input_device, unwrap
from grpo_ao.oracle.masks import has_states
from grpo_ao.oracle.memory import if_memory_suffices
from grpo_ao.oracle.merging import merged, reason_unmergeable
from grpo_ao.oracle.prompt import OraclePrompt, check_counts, pad_prompts
from grpo_ao.oracle.sampling import Completion, Sampling

# The tokens of each completion, and what lies behind its end; their log-probabilities, if any.
_Written = tuple[list[list[int]], Tensor]


@dataclass
class Room:
    """How many sequences at most are completed at once, as far as memory was found to be short."""

    sequences: int = sys.maxsize


def generate_completions(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    hook: InjectionHook,
    prompts: Sequence[OraclePrompt],
    vectors: Sequence[Tensor],
    sampling: Sampling,
    batch_size: int = 64,
    watched: Sequence[int] | None = None,
    room: Room | None = None,
) -> list[list[Completion]]:
    """Complete each prompt; return ``[prompt][sample]``.

    Log-probabilities are taken unless ``watched`` is None, at temperature 1, whatever was drawn by.
    ``vectors[i]`` is ``(K, D)``, one row for each placeholder of ``prompts[i]``. What the model's
    own ``generation_config`` says of sampling does not count; torch's global generator draws.
    ``batch_size`` counts sequences, and falls, with a warning, where GPU memory is short, which
    ``room`` keeps for the calls to come; prompts of like length share a batch, and the result is in
    the order given. The hook serves nobody afterwards. Raises ValueError, with the prompt and both
    counts, where a prompt's placeholders and its vectors differ in number, and UserError where
    memory does not suffice for one prompt.

    The adapter is merged into the weights meanwhile. For a model that does not allow that, or
    whose decoder ``decoding`` cannot run, transformers' ``generate`` does the work, with a warning,
    and tells no log-probabilities.
    """
    check_counts(prompts, vectors)
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, got {batch_size}.")
    ends = end_token_ids(model, tokenizer)
    settings = _Settings(sampling, ends, pad_token_id(tokenizer, ends), watched)
    slow = _is_slow(model)
    decode = _generate if slow else _decode

    def complete(batch: list[int]) -> _Written:
        own = [vectors[i] for i in batch]
        read = _read(model, hook, [prompts[i] for i in batch], own, settings)
        return decode(unwrap(model), read, settings)

    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].input_ids))
    completions: list[list[Completion]] = [[] for _ in prompts]
    with evaluating(model), nullcontext() if slow else merged(model):
        sizes = batch_size, sampling.num_samples, room or Room()
        for batch, rows, logp_BNT in _batches(order, *sizes, complete):
            for number, (row, logp_NT) in enumerate(zip(rows, logp_BNT, strict=True)):
                ids = cut_at_end(row, ends)
                found = Completion(ids, logp_NT[: len(ids)])
                completions[batch[number // sampling.num_samples]].append(found)
    return completions


def _is_slow(model: PreTrainedModel | PeftModel) -> bool:
    """Say whether transformers' generate has to do the work, and warn why."""
    reason = reason_unmergeable(model) or reason_undecodable(unwrap(model))
    if reason:
        said = f"completions come slowly, from transformers' generate: {reason}."
        warnings.warn(said, stacklevel=3)
    return reason is not None


def _batches(
    order: Sequence[int],
    batch_size: int,
    num_samples: int,
    room: Room,
    complete: Callable[[list[int]], _Written],
) -> Iterator[tuple[list[int], *_Written]]:
    """Complete in batches, of half as many prompts from here on where memory does not suffice."""
    first = 0
    while first < len(order):
        size = max(1, min(batch_size, room.sequences) // num_samples)
        batch = list(order[first : first + size])
        written = if_memory_suffices(partial(complete, batch))
        if written is not None:
            yield batch, *written
            first += len(batch)
            continue
        if len(batch) == 1:
            raise UserError(
                f"GPU memory does not suffice for {num_samples} completions of one prompt: free "
                "some, or ask for fewer or shorter ones."
            )
        room.sequences = len(batch) // 2 * num_samples
        warnings.warn(
            f"GPU memory is short: {len(batch)} prompts at once do not fit, going on with "
            f"{len(batch) // 2}.",
            stacklevel=3,
        )


class _Settings(NamedTuple):
    sampling: Sampling
    ends: list[int]
    pad_id: int
    watched: Sequence[int] | None


class _Read(NamedTuple):
    """Left-padded prompts, and the cache of all of their tokens but the last."""

    input_ids_BL: Tensor
    mask_BL: Tensor
    cache: DynamicCache


def _read(
    model: PreTrainedModel | PeftModel,
    hook: InjectionHook,
    prompts: Sequence[OraclePrompt],
    vectors: Sequence[Tensor],
    settings: _Settings,
) -> _Read:
    """Read each prompt once, with its activations, at the positions that ``generate`` gives."""
    input_ids_BL, mask_BL = pad_prompts(prompts, settings.pad_id)
    device = input_device(model)
    input_ids_BL, mask_BL = moved(input_ids_BL, device), moved(mask_BL, device)
    injection = Injection.of(prompts, vectors, input_ids_BL.shape[1])
    position_ids_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
    base = unwrap(model)
    # Without the config layers of sliding attention keep all of a prompt, too; but it takes the
    # config to make caches of states.
    cache = DynamicCache(config=base.config) if has_states(base) else DynamicCache()
    with hook.serving(injection):
        base(
            input_ids=input_ids_BL[:, :-1],
            attention_mask=mask_BL[:, :-1],
            position_ids=position_ids_BL[:, :-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return _Read(input_ids_BL, mask_BL, cache)


def _decode(base: PreTrainedModel, read: _Read, settings: _Settings) -> _Written:
    decoder = Decoder(
        base,
        read.cache,
        read.mask_BL,
        read.input_ids_BL[:, -1],
        settings.sampling,
        settings.ends,
        settings.watched,
    )
    with decode_attention(base):
        rows = decoder.run().tolist()
    return rows, decoder.logp_BNT[: len(rows)].cpu()


def _generate(base: PreTrainedModel, read: _Read, settings: _Settings) -> _Written:
    samples = settings.sampling.num_samples
    # As a beam search does it: caches of linear attention have no other way to be repeated.
    source_B: Any = torch.arange(len(read.mask_BL), device=read.mask_BL.device)
    read.cache.reorder_cache(source_B.repeat_interleave(samples))
    generate: Any = base.generate
    output_BL = generate(
        input_ids=read.input_ids_BL.repeat_interleave(samples, dim=0),
        attention_mask=read.mask_BL.repeat_interleave(samples, dim=0),
        past_key_values=read.cache,
        generation_config=_generation_config(settings),
    )
    if not isinstance(output_BL, Tensor):
        raise TypeError(f"generate returned {type(output_BL).__name__}, not token ids.")
    rows = output_BL[:, read.input_ids_BL.shape[1] :].tolist()
    return rows, torch.empty(*output_BL.shape, 0)


def _generation_config(settings: _Settings) -> GenerationConfig:
    # generate() fills what is None here from the model's own generation_config (Qwen3's: top_k 20,
    # top_p .95), so that every value that changes the distribution is given, at its neutral value.
    config = GenerationConfig(
        max_new_tokens=settings.sampling.max_new_tokens,
        do_sample=settings.sampling.temperature > 0,
        temperature=settings.sampling.temperature if settings.sampling.temperature > 0 else 1.0,
        top_k=0,
        top_p=1.0,
        typical_p=1.0,
        epsilon_cutoff=0.0,
        eta_cutoff=0.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        num_beams=1,
        num_return_sequences=1,
        use_cache=True,
        eos_token_id=settings.ends,
        pad_token_id=settings.pad_id,
    )
    if settings.sampling.temperature > 0:
        config.min_p = 0.0
    return config
