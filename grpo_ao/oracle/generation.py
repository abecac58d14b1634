"""Completions of oracle prompts, activations injected, with the adapter merged."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

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
from grpo_ao.oracle.decoding import Decoder, decode_attention, reason_undecodable
from grpo_ao.oracle.injection import Injection, InjectionHook
from grpo_ao.oracle.layers import input_device, unwrap
from grpo_ao.oracle.merging import merged, reason_unmergeable
from grpo_ao.oracle.prompt import OraclePrompt, pad_prompts


def generate_completions(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    hook: InjectionHook,
    prompts: Sequence[OraclePrompt],
    vectors: Sequence[Tensor],
    num_samples: int = 1,
    temperature: int | float = 0.0,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
    keep_end: bool = False,
) -> list[list[list[int]]]:
    """Complete each prompt ``num_samples`` times; return token ids, [prompt][sample][token].

    ``vectors[i]`` is ``(K, D)``, one row for each placeholder of ``prompts[i]``. Temperature 0 is
    greedy; above it the whole distribution is sampled (no top-k, no top-p, whatever the model's
    own ``generation_config`` says), with torch's global generator. Ids end before the first end
    token, or with it if ``keep_end``. ``batch_size`` counts sequences; prompts of like length share
    a batch, and the result is in the order given. ``progress`` is called with the number of prompts
    finished. The hook serves nobody afterwards. Raises ValueError, with the prompt and
    both counts, where a prompt's placeholders and its vectors differ in number.

    The adapter is merged into the weights meanwhile. For a model that does not allow that, or
    whose decoder ``decoding`` cannot run, transformers' ``generate`` does the work, with a warning.
    """
    _check_request(prompts, vectors, num_samples, temperature, max_new_tokens, batch_size)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].input_ids))
    size = max(1, batch_size // num_samples)
    ends = end_token_ids(model, tokenizer)
    settings = _Settings(
        num_samples, temperature, max_new_tokens, ends, pad_token_id(tokenizer, ends)
    )
    slow = reason_unmergeable(model) or reason_undecodable(unwrap(model))
    if slow:
        warnings.warn(
            f"completions come slowly, from transformers' generate: {slow}.", stacklevel=2
        )
    complete = _generate if slow else _decode
    completions: list[list[list[int]]] = [[] for _ in prompts]
    with evaluating(model), nullcontext() if slow else merged(model):
        for first in range(0, len(order), size):
            batch = order[first : first + size]
            read = _read(
                model, hook, [prompts[i] for i in batch], [vectors[i] for i in batch], settings
            )
            for number, row in enumerate(complete(unwrap(model), read, settings)):
                completions[batch[number // num_samples]].append(cut_at_end(row, ends, keep_end))
            if progress is not None:
                progress(first + len(batch))
    return completions


def _check_request(
    prompts: Sequence[OraclePrompt],
    vectors: Sequence[Tensor],
    num_samples: int,
    temperature: int | float,
    max_new_tokens: int,
    batch_size: int,
) -> None:
    if len(prompts) != len(vectors):
        raise ValueError(f"{len(prompts)} prompts, but activations for {len(vectors)}.")
    if min(num_samples, max_new_tokens, batch_size) < 1:
        raise UserError("num_samples, max_new_tokens and batch_size must be at least 1.")
    if temperature < 0:
        raise UserError(f"the temperature must be 0 (greedy) or more, got {temperature}.")
    if temperature == 0 and num_samples > 1:
        raise UserError(f"{num_samples} greedy samples are all alike: set a temperature.")
    for prompt, row_KD in zip(prompts, vectors, strict=True):
        if len(prompt.positions) != len(row_KD):
            raise ValueError(
                f"the prompt {prompt.text!r} has {len(prompt.positions)} placeholders for "
                f"{len(row_KD)} vectors."
            )


class _Settings(NamedTuple):
    num_samples: int
    temperature: int | float
    max_new_tokens: int
    ends: list[int]
    pad_id: int


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
    input_ids_BL, mask_BL, _ = pad_prompts(prompts, settings.pad_id)
    device = input_device(model)
    input_ids_BL, mask_BL = input_ids_BL.to(device), mask_BL.to(device)
    injection = Injection.from_rows(
        [prompt.positions for prompt in prompts],
        vectors,
        lengths=[len(prompt.input_ids) for prompt in prompts],
        padded_length=input_ids_BL.shape[1],
    )
    position_ids_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
    # Without the config, so that layers of sliding attention keep all of a prompt, too.
    cache = DynamicCache()
    with hook.serving(injection.to(device)):
        unwrap(model)(
            input_ids=input_ids_BL[:, :-1],
            attention_mask=mask_BL[:, :-1],
            position_ids=position_ids_BL[:, :-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return _Read(input_ids_BL, mask_BL, cache)


def _decode(base: PreTrainedModel, read: _Read, settings: _Settings) -> list[list[int]]:
    decoder = Decoder(
        base,
        read.cache,
        read.mask_BL,
        read.input_ids_BL[:, -1],
        settings.num_samples,
        settings.temperature,
        settings.max_new_tokens,
        settings.ends,
    )
    with decode_attention(base):
        return decoder.run().tolist()


def _generate(base: PreTrainedModel, read: _Read, settings: _Settings) -> list[list[int]]:
    read.cache.batch_repeat_interleave(settings.num_samples)
    generate: Any = base.generate
    output_BL = generate(
        input_ids=read.input_ids_BL.repeat_interleave(settings.num_samples, dim=0),
        attention_mask=read.mask_BL.repeat_interleave(settings.num_samples, dim=0),
        past_key_values=read.cache,
        generation_config=_generation_config(settings),
    )
    if not isinstance(output_BL, Tensor):
        raise TypeError(f"generate returned {type(output_BL).__name__}, not token ids.")
    return output_BL[:, read.input_ids_BL.shape[1] :].tolist()


def _generation_config(settings: _Settings) -> GenerationConfig:
    # generate() fills what is None here from the model's own generation_config (Qwen3's: top_k 20,
    # top_p .95), so that every value that changes the distribution is given, at its neutral value.
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=settings.temperature > 0,
        temperature=settings.temperature if settings.temperature > 0 else 1.0,
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
    if settings.temperature > 0:
        config.min_p = 0.0
    return config


def end_token_ids(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Return the ids that end a completion: the tokenizer's and those of the model's config."""
    own = getattr(unwrap(model).generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    ends = sorted({i for i in [tokenizer.eos_token_id, *own] if i is not None})
    if not ends:
        raise UserError("neither the tokenizer nor the model names an end-of-sequence token.")
    return ends


def pad_token_id(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> int:
    """Return the tokenizer's padding id, or an end token where it has none."""
    pad_id = tokenizer.pad_token_id
    return pad_id if isinstance(pad_id, int) else ends[0]


def cut_at_end(token_ids: Sequence[int], ends: Sequence[int], keep_end: bool = False) -> list[int]:
    """Return the ids before the first end token, or up to it: never the padding behind it."""
    stop = next((n for n, i in enumerate(token_ids) if i in ends), len(token_ids))
    return list(token_ids[: stop + keep_end])
