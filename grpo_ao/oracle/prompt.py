"""The oracle's prompt: placeholders to inject at, then the question."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_ao.errors import UserError
from grpo_ao.oracle.injection import stack_positions
from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.oracle.turn import user_turn


@dataclass(frozen=True)
class OraclePrompt:
    """One prompt: its text, its token ids, and the positions of its own run of placeholders."""

    text: str
    input_ids: list[int]
    positions: list[int]


def build_oracle_prompt(
    tokenizer: PreTrainedTokenizerBase,
    layer: int,
    num_vectors: int,
    question: str,
    spec: OracleSpec,
) -> OraclePrompt:
    """Build the prompt that asks ``question`` about ``num_vectors`` activations of ``layer``.

    One user turn, prefix and question, through the chat template with a generation prompt and,
    where the template knows it, thinking off. The positions are those of the prefix's own run of
    placeholders: a placeholder token in the question is not among them. Raises UserError, with
    the prompt and both counts, unless the run is exactly ``num_vectors`` placeholder tokens.
    """
    if num_vectors < 1:
        raise UserError(f"an oracle prompt needs at least one activation, got {num_vectors}.")
    before, run, after = spec.prefix(layer, num_vectors)
    turn = user_turn(tokenizer, before + run + after + question, answer_next=True)
    text, input_ids = turn.text, turn.input_ids
    start = text.find(before + run + after)
    if start < 0:
        raise UserError(f"the chat template changes the oracle's prefix in the prompt {text!r}.")
    run_start = start + len(before)
    positions = _tokens_within(turn.offsets, run_start, run_start + len(run))
    placeholder = placeholder_id(tokenizer, spec.special_token)
    found = sum(input_ids[p] == placeholder for p in positions)
    if not found == len(positions) == num_vectors:
        raise UserError(
            f"the prompt {text!r} has {found} placeholders ({len(positions)} tokens in their "
            f"place) for {num_vectors} vectors."
        )
    return OraclePrompt(text, input_ids, positions)


def placeholder_id(tokenizer: PreTrainedTokenizerBase, special_token: str) -> int:
    """Return the id of the placeholder, which must be one token of the tokenizer."""
    ids = tokenizer.encode(special_token, add_special_tokens=False)
    if len(ids) != 1:
        raise UserError(
            f"the placeholder {special_token!r} is {len(ids)} tokens in this tokenizer, not one: "
            "choose another special_token."
        )
    return ids[0]


def _tokens_within(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> list[int]:
    # A token that reaches over an edge is counted too, so that the caller sees it and refuses.
    return [i for i, (a, b) in enumerate(offsets) if a < stop and b > start and a < b]


def pad_prompts(
    prompts: Sequence[OraclePrompt], pad_id: int
) -> tuple[Int64[Tensor, "batch seq"], Int64[Tensor, "batch seq"], Int64[Tensor, "batch slots"]]:
    """Pad on the left: return input_ids_BL, attention_mask_BL and positions_BK (-1: unused)."""
    longest = max(len(prompt.input_ids) for prompt in prompts)
    pads = [longest - len(prompt.input_ids) for prompt in prompts]
    rows = list(zip(prompts, pads, strict=True))
    input_ids_BL = torch.tensor([[pad_id] * pad + prompt.input_ids for prompt, pad in rows])
    mask_BL = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
    positions_BK = stack_positions([[p + pad for p in prompt.positions] for prompt, pad in rows])
    return input_ids_BL, mask_BL, positions_BK
