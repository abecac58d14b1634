"""The tokens that end an assistant's turn: one set for sampling, teaching and scoring."""

from collections.abc import Sequence

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_ao.errors import UserError
from grpo_ao.oracle.layers import unwrap


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that the chat template puts behind an assistant's message.

    In Gemma it is ``<end_of_turn>``, which is not the tokenizer's end-of-sequence token. It is what
    is taught. Raises UserError where the template writes no special token there.
    """
    if (end := _template_end(tokenizer)) is None:
        raise UserError("the chat template ends an assistant's message with no special token.")
    return end


def end_token_ids(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Return every id that ends a completion.

    These are the tokenizer's end-of-sequence token, those of the model's ``generation_config``, and
    what the chat template puts behind an assistant's message.
    """
    own = getattr(unwrap(model).generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    named = [tokenizer.eos_token_id, *own, _template_end(tokenizer)]
    ends = [i for i in dict.fromkeys(named) if i is not None]
    if not all(isinstance(i, int) for i in ends):
        raise UserError(f"the model's generation_config names {ends} as ends, which are no tokens.")
    if not ends:
        raise UserError("neither tokenizer, model nor chat template names an end of a turn.")
    return sorted(ends)


def _template_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    said = "An answer."
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    behind = text.rpartition(said)[2].lstrip()
    ids = tokenizer.encode(behind, add_special_tokens=False)
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def pad_token_id(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> int:
    """Return the tokenizer's padding id, or an end token where it has none."""
    pad_id = tokenizer.pad_token_id
    return pad_id if isinstance(pad_id, int) else ends[0]


def cut_at_end(token_ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return the ids up to the first end token, which is kept: never the padding behind it."""
    stop = next((n for n, i in enumerate(token_ids, start=1) if i in ends), len(token_ids))
    return list(token_ids[:stop])
