"""What ``Oracle.ask`` takes, and all of it that can be refused without a model."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from grpo_ao.errors import UserError
from grpo_ao.oracle.activations import content_start, select_positions
from grpo_ao.oracle.context import check_prompt, check_text, context_length
from grpo_ao.oracle.layers import check_layer, num_decoder_layers
from grpo_ao.oracle.prompt import OraclePrompt, build_oracle_prompt
from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.oracle.turn import Conversation, conversation, user_turn
from grpo_ao.probe import Layers, Positions

# How many times larger or smaller than activations vectors may be before a warning says so.
_FAR = 10


class TextReading(NamedTuple):
    """What is read of one text: its token ids, the positions among them, the tokens there."""

    token_ids: list[int]
    where: range
    tokens: tuple[str, ...]


def text_readings(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    texts: Sequence[str | Conversation],
    positions: Sequence[Positions | str],
) -> list[TextReading]:
    """Tokenise texts as the subject reads them, and choose the positions of each.

    Raises UserError for a text that is too long for the model, or too short for its positions.
    """
    found = []
    for text, where in zip(texts, positions, strict=True):
        if isinstance(text, str):
            turn, start = user_turn(tokenizer, text, answer_next=False), content_start(tokenizer)
        else:
            turn, start = conversation(tokenizer, text)
        said = text if isinstance(text, str) else turn.text
        check_text(context_length(config), len(turn.input_ids), said)
        where = Positions.parse(where) if isinstance(where, str) else where
        chosen = select_positions(tokenizer, turn.input_ids, where, said, start=start)
        tokens = tuple(turn.text[slice(*turn.offsets[place])] for place in chosen)
        found.append(TextReading(turn.input_ids, chosen, tokens))
    return found


def written_prompts(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    spec: OracleSpec,
    layers: Layers,
    counts: Sequence[int],
    questions: Sequence[str],
    max_new_tokens: int,
) -> list[OraclePrompt]:
    """Write the prompt of each question for so many activations, as many of each layer.

    Raises UserError for a layer that the model does not have, and for a prompt that leaves the
    answer no room.
    """
    for layer in layers:
        check_layer(num_decoder_layers(config), layer)
    prompts = []
    for count, question in zip(counts, questions, strict=True):
        prompt = build_oracle_prompt(tokenizer, layers, count, question, spec)
        check_prompt(context_length(config), len(prompt.input_ids), max_new_tokens, question)
        prompts.append(prompt)
    return prompts


def one_each(given: str | Positions | Sequence, texts: int, name: str) -> list:
    """Return a value for each text: one that serves for all, or those of a list."""
    if isinstance(given, str | Positions):
        return [given] * texts
    if len(given) != texts:
        raise UserError(
            f"{texts} texts, but {len(given)} {name}: give one for all, or one for each."
        )
    return list(given)


def checked_vectors(vectors: Sequence[Tensor], width: int) -> list[Float[Tensor, "_ D"]]:
    """Return a user's own vectors as (K, D), one vector alone as (1, D).

    Raises UserError for another width than the model's, and for a vector without a direction.
    """
    found = [torch.atleast_2d(given) for given in vectors]
    for given_KD in found:
        if given_KD.dim() != 2 or given_KD.shape[1] != width:
            raise UserError(
                f"vectors of shape {tuple(given_KD.shape)} were given, but this oracle's model "
                f"has activations of width {width}: give (positions, {width}) for each question."
            )
        norm_K = given_KD.float().norm(dim=-1)
        if not (norm_K.isfinite() & (norm_K > 0)).all():
            raise UserError(
                "a vector is zero or not finite, and so has no direction: leave it out."
            )
    return found


def unlike_activations(
    vectors: Sequence[Float[Tensor, "_ D"]], activations_KD: Float[Tensor, "K D"]
) -> str | None:
    """Return a warning where vectors have other norms than the activations of the same layers."""
    both = (torch.cat([*vectors]), activations_KD)
    given, usual = (float(rows.float().norm(dim=-1).median()) for rows in both)
    if usual / _FAR <= given <= usual * _FAR:
        return None
    return (
        f"the vectors' median norm is {given:.3g}, that of activations there about {usual:.3g}: "
        "only directions are injected, but the oracle was trained on whole activations, and what "
        "it says of other vectors, its confidence above all, was never measured."
    )
