"""How probable an oracle finds what was written, with the activations injected."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from grpo_ao.oracle.activations import evaluating
from grpo_ao.oracle.batches import mask_of, moved, padded
from grpo_ao.oracle.injection import Injection, InjectionHook
from grpo_ao.oracle.layers import input_device
from grpo_ao.oracle.merging import merged_if_possible
from grpo_ao.oracle.prompt import OraclePrompt, pad_prompts

# Rows whose logits are held at once.
_LOGITS_ROWS = 128


def completion_logp(
    model: PreTrainedModel | PeftModel,
    hook: InjectionHook,
    prompts: Sequence[OraclePrompt],
    vectors: Sequence[Tensor],
    completions: Sequence[Sequence[int]],
    batch_size: int,
    watched: Sequence[int] = (),
) -> Iterator[Float[Tensor, "tokens watched"]]:
    """Read prompts with their completions; yield ``watched_logp`` of each, float32.

    ``vectors[i]`` is ``(K, D)``, one row for each placeholder of ``prompts[i]``. The adapter is
    merged into the weights where that can be done, as it is for sampling.
    """
    batch_size = min(batch_size, _LOGITS_ROWS)
    for first in range(0, len(prompts), batch_size):
        part = slice(first, first + batch_size)
        try:
            with evaluating(model), merged_if_possible(model):
                logits_NV = completion_logits(
                    model, hook, prompts[part], vectors[part], completions[part]
                )
        finally:
            hook.clear()
        lengths = [len(ids) for ids in completions[part]]
        for ids, logits_CV in zip(completions[part], logits_NV.split(lengths), strict=True):
            own = (torch.tensor(list(some)).long().to(logits_CV.device) for some in (ids, watched))
            yield watched_logp(logits_CV.float(), *own).cpu()


def completion_logits(
    model: PreTrainedModel | PeftModel,
    hook: InjectionHook,
    prompts: Sequence[OraclePrompt],
    vectors: Sequence[Tensor],
    completions: Sequence[Sequence[int]],
) -> Float[Tensor, "tokens vocab"]:
    """Read prompts with their completions in one pass; return the logits of all their tokens.

    Those of the first completion come first. The activations stay bound to the hook, for a
    backward pass that computes the layers anew.
    """
    # Any id pads: no token sees padding.
    prompt_BL, mask_BL = pad_prompts(prompts, 0)
    tail_BC, tail_mask_BC = padded(completions, 0), mask_of(completions)
    device = input_device(model)
    hook.bind(Injection.of(prompts, vectors, prompt_BL.shape[1]))
    written_N = torch.nn.functional.pad(tail_mask_BC, (0, 1)).flatten().nonzero()[:, 0]
    written_N = moved(written_N, device)
    logits_BCV = model(
        input_ids=moved(torch.cat([prompt_BL, tail_BC], dim=1), device),
        attention_mask=moved(torch.cat([mask_BL, tail_mask_BC], dim=1), device),
        logits_to_keep=tail_BC.shape[1] + 1,
        use_cache=False,
    ).logits
    return logits_BCV.flatten(0, 1)[written_N]


def watched_logp(
    logits_NV: Float[Tensor, "tokens vocab"],
    token_N: Int64[Tensor, " tokens"],
    watched_W: Int64[Tensor, " others"],
) -> Float[Tensor, "tokens watched"]:
    """Return the log-probability of each row's own token, and behind it those of ``watched_W``."""
    columns_NT = torch.cat([token_N[:, None], watched_W.expand(len(token_N), -1)], dim=1)
    return logits_NV.gather(1, columns_NT) - logits_NV.logsumexp(dim=1, keepdim=True)


def probability_of(logp_CT: Float[Tensor, "tokens watched"]) -> float:
    """Return the probability of all of these tokens."""
    return logp_CT[:, 0].sum().exp().item()
