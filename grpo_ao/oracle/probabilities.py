"""How probable an oracle finds what was written, with the activations injected."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_ao.oracle.activations import evaluating
from grpo_ao.oracle.batches import mask_of, padded
from grpo_ao.oracle.ends import end_token_ids, pad_token_id
from grpo_ao.oracle.injection import Injection, InjectionHook
from grpo_ao.oracle.layers import input_device
from grpo_ao.oracle.prompt import OraclePrompt, pad_prompts


def completion_logp(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    hook: InjectionHook,
    prompts: Sequence[OraclePrompt],
    vectors: Sequence[Tensor],
    completions: Sequence[Sequence[int]],
    batch_size: int,
) -> Iterator[Float[Tensor, "completion vocab"]]:
    """Yield for each prompt the log-probabilities, float32, that its completion was chosen from.

    ``vectors[i]`` is ``(K, D)``, one row for each placeholder of ``prompts[i]``.
    """
    pad = pad_token_id(tokenizer, end_token_ids(model, tokenizer))
    device = input_device(model)
    for first in range(0, len(prompts), batch_size):
        part = slice(first, first + batch_size)
        written = completions[part]
        prompt_BL, mask_BL = pad_prompts(prompts[part], pad)
        tail_BC, tail_mask_BC = padded(written, pad), mask_of(written)
        injection = Injection.of(prompts[part], vectors[part], prompt_BL.shape[1])
        with evaluating(model), hook.serving(injection.to(device)):
            logits_BCV = model(
                input_ids=torch.cat([prompt_BL, tail_BC], dim=1).to(device),
                attention_mask=torch.cat([mask_BL, tail_mask_BC], dim=1).to(device),
                logits_to_keep=tail_BC.shape[1] + 1,
            ).logits
        for ids, logits_CV in zip(written, logits_BCV, strict=True):
            yield logits_CV[: len(ids)].float().log_softmax(dim=-1)


def probability_of(logp_CV: Float[Tensor, "completion vocab"], token_ids: Sequence[int]) -> float:
    """Return the probability of all of these tokens, one from each row."""
    return logp_CV.gather(1, torch.tensor([token_ids], device=logp_CV.device).T).sum().exp().item()
