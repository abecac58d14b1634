"""The oracle's prompt: placeholders to inject at, then the question."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_ao.errors import UserError
from grpo_ao.oracle.batches import mask_of, padded
from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.oracle.turn import Turn, user_turn
from grpo_ao.probe import Layers, format_layers


@dataclass(frozen=True)
class OraclePrompt:
    """One prompt: its text, its token ids, and the positions of its own placeholders, in order."""

    text: str
    input_ids: list[int]
    positions: list[int]


def build_oracle_prompt(
    tokenizer: PreTrainedTokenizerBase,
    layers: Layers,
    num_vectors: int,
    question: str,
    spec: OracleSpec,
) -> OraclePrompt:
    """Build the prompt that asks ``question`` about ``num_vectors`` activations of ``layers``.

    One user turn through the chat template with a generation prompt and, where the template knows
    it, thinking off: a prefix for each layer, with as many placeholders as there are activations
    of each, then the question. The positions are those of the prefixes' own placeholders: a
    placeholder token in the question is not among them. Raises UserError, with the prompt and both
    counts, unless each run is exactly as many placeholder tokens.
    """
    count, rest = divmod(num_vectors, len(layers))
    if count < 1 or rest:
        raise UserError(
            f"an oracle prompt needs at least one activation, and as many of each layer, got "
            f"{num_vectors} of layers {format_layers(layers)}."
        )
    prefixes = [spec.prefix(layer, count) for layer in layers]
    prefix = "".join(map("".join, prefixes))
    turn = user_turn(tokenizer, prefix + question, answer_next=True)
    start = turn.text.find(prefix)
    if start < 0:
        raise UserError(
            f"the chat template changes the oracle's prefix in the prompt {turn.text!r}."
        )
    placeholder = placeholder_id(tokenizer, spec.special_token)
    positions: list[int] = []
    for before, run, after in prefixes:
        start += len(before)
        positions += _run_of(turn, start, start + len(run), placeholder, count)
        start += len(run) + len(after)
    return OraclePrompt(turn.text, turn.input_ids, positions)


def _run_of(turn: Turn, start: int, stop: int, placeholder: int, count: int) -> list[int]:
    # A token that reaches over an edge is counted too, so that it is seen and refused.
    run = [i for i, (a, b) in enumerate(turn.offsets) if a < stop and b > start and a < b]
    found = sum(turn.input_ids[p] == placeholder for p in run)
    if not found == len(run) == count:
        raise UserError(
            f"the prompt {turn.text!r} has {found} placeholders ({len(run)} tokens in their "
            f"place) for {count} vectors."
        )
    return run


def placeholder_id(tokenizer: PreTrainedTokenizerBase, special_token: str) -> int:
    """Return the id of the placeholder, which must be one token of the tokenizer."""
    ids = tokenizer.encode(special_token, add_special_tokens=False)
    if len(ids) != 1:
        raise UserError(
            f"the placeholder {special_token!r} is {len(ids)} tokens in this tokenizer, not one: "
            "choose another special_token."
        )
    return ids[0]


def check_counts(prompts: Sequence[OraclePrompt], vectors: Sequence[Tensor]) -> None:
    """Raise ValueError unless each prompt has as many vectors as placeholders."""
    if len(prompts) != len(vectors):
        raise ValueError(f"{len(prompts)} prompts, but activations for {len(vectors)}.")
    for prompt, row_KD in zip(prompts, vectors, strict=True):
        if len(prompt.positions) != len(row_KD):
            raise ValueError(
                f"the prompt {prompt.text!r} has {len(prompt.positions)} placeholders for "
                f"{len(row_KD)} vectors."
            )


def pad_prompts(
    prompts: Sequence[OraclePrompt], pad_id: int
) -> tuple[Int64[Tensor, "batch seq"], Int64[Tensor, "batch seq"]]:
    """Pad prompts on the left: return input_ids_BL and attention_mask_BL."""
    rows = [prompt.input_ids for prompt in prompts]
    return padded(rows, pad_id, left=True), mask_of(rows, left=True)
