"""What fits into a model's positions: a text that is read, and a prompt with its answer."""

import sys

from transformers import PreTrainedConfig

from grpo_ao.errors import UserError
from grpo_ao.oracle.turn import shown


def context_length(config: PreTrainedConfig) -> int:
    """Return how many positions a model was made for; no limit where its configuration has none."""
    text_config = config.get_text_config(decoder=True)
    return getattr(text_config, "max_position_embeddings", None) or sys.maxsize


def check_text(context: int, tokens: int, text: str) -> None:
    """Raise UserError for a text of more tokens than the subject has positions."""
    if tokens > context:
        raise UserError(
            f"the text {shown(text)} has {tokens:,} tokens, more than the model's {context:,} "
            "positions: shorten it."
        )


def check_prompt(context: int, tokens: int, max_new_tokens: int, question: str) -> None:
    """Raise UserError for a prompt that leaves the oracle no positions for its answer."""
    if tokens + max_new_tokens > context:
        raise UserError(
            f"the question {shown(question)} makes a prompt of {tokens:,} tokens, which with "
            f"{max_new_tokens:,} of the answer are more than the model's {context:,} positions: "
            "shorten it, or read fewer positions."
        )
