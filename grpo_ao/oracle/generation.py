"""Completions of oracle prompts, activations injected, with transformers' ``generate``."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from grpo_ao.oracle.activations import evaluating
from grpo_ao.oracle.injection import Injection, InjectionHook
from grpo_ao.oracle.layers import input_device, unwrap
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
    """
    _check_request(prompts, vectors, num_samples, temperature, max_new_tokens, batch_size)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].input_ids))
    size = max(1, batch_size // num_samples)
    ends = end_token_ids(model, tokenizer)
    pad_id = pad_token_id(tokenizer, ends)
    config = _generation_config(temperature, max_new_tokens, ends, pad_id)
    completions: list[list[list[int]]] = [[] for _ in prompts]
    with evaluating(model):
        for first in range(0, len(order), size):
            batch = order[first : first + size]
            rows = _generate_batch(
                model,
                hook,
                [prompts[i] for i in batch],
                [vectors[i] for i in batch],
                num_samples,
                config,
                pad_id,
            )
            for number, row in enumerate(rows):
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
        raise ValueError("num_samples, max_new_tokens and batch_size must be at least 1.")
    if temperature < 0:
        raise ValueError(f"the temperature must be 0 (greedy) or more, got {temperature}.")
    if temperature == 0 and num_samples > 1:
        raise ValueError(f"{num_samples} greedy samples are all alike: set a temperature.")
    for prompt, row_KD in zip(prompts, vectors, strict=True):
        if len(prompt.positions) != len(row_KD):
            raise ValueError(
                f"the prompt {prompt.text!r} has {len(prompt.positions)} placeholders for "
                f"{len(row_KD)} vectors."
            )


def _generate_batch(
    model: PreTrainedModel | PeftModel,
    hook: InjectionHook,
    prompts: Sequence[OraclePrompt],
    vectors: Sequence[Tensor],
    num_samples: int,
    config: GenerationConfig,
    pad_id: int,
) -> list[list[int]]:
    """Generate ``num_samples`` rows for each prompt; several share one reading of the prompt."""
    input_ids_BL, mask_BL, _ = pad_prompts(prompts, pad_id)
    injection = Injection.from_rows(
        [prompt.positions for prompt in prompts],
        vectors,
        lengths=[len(prompt.input_ids) for prompt in prompts],
        padded_length=input_ids_BL.shape[1],
    )
    base: Any = unwrap(model)
    device = input_device(model)
    injection, input_ids_BL, mask_BL = (
        injection.to(device),
        input_ids_BL.to(device),
        mask_BL.to(device),
    )
    if num_samples == 1:
        with hook.serving(injection):
            output_BL = base.generate(
                input_ids=input_ids_BL, attention_mask=mask_BL, generation_config=config
            )
    else:
        with hook.serving(injection):
            cache = _read_prompts(base, input_ids_BL, mask_BL)
        cache.batch_repeat_interleave(num_samples)
        output_BL = base.generate(
            input_ids=input_ids_BL.repeat_interleave(num_samples, dim=0),
            attention_mask=mask_BL.repeat_interleave(num_samples, dim=0),
            past_key_values=cache,
            generation_config=config,
        )
    if not isinstance(output_BL, Tensor):
        raise TypeError(f"generate returned {type(output_BL).__name__}, not token ids.")
    return output_BL[:, input_ids_BL.shape[1] :].tolist()


def _read_prompts(base: Any, input_ids_BL: Tensor, mask_BL: Tensor) -> Any:
    """Return the cache of all but the last token, with the positions that ``generate`` gives."""
    position_ids_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        return base(
            input_ids=input_ids_BL[:, :-1],
            attention_mask=mask_BL[:, :-1],
            position_ids=position_ids_BL[:, :-1],
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values


def _generation_config(
    temperature: int | float, max_new_tokens: int, ends: Sequence[int], pad_id: int
) -> GenerationConfig:
    # generate() fills what is None here from the model's own generation_config (Qwen3's: top_k 20,
    # top_p .95), so that every value that changes the distribution is given, at its neutral value.
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else 1.0,
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
        eos_token_id=list(ends),
        pad_token_id=pad_id,
    )
    if temperature > 0:
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
        raise ValueError("neither the tokenizer nor the model names an end-of-sequence token.")
    return ends


def pad_token_id(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> int:
    """Return the tokenizer's padding id, or an end token where it has none."""
    pad_id = tokenizer.pad_token_id
    return pad_id if isinstance(pad_id, int) else ends[0]


def cut_at_end(token_ids: Sequence[int], ends: Sequence[int], keep_end: bool = False) -> list[int]:
    """Return the ids before the first end token, or up to it: never the padding behind it."""
    stop = next((n for n, i in enumerate(token_ids) if i in ends), len(token_ids))
    return list(token_ids[: stop + keep_end])
