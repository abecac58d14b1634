import copy

import pytest
from transformers import GenerationConfig

from grpo_ao.errors import UserError
from grpo_ao.oracle.ends import cut_at_end, end_of_turn_id, end_token_ids
from tests.tiny import CHAT_TEMPLATE, tiny_model, tiny_tokenizer, token_id

END = token_id("<|im_end|>")
PAD = token_id("<|endoftext|>")


def test_ids_end_with_the_first_end_token_or_where_the_length_cut_them():
    assert cut_at_end([5, 6, END, 7, END, PAD], [END]) == [5, 6, END]
    assert cut_at_end([5, 6], [END]) == [5, 6]
    assert cut_at_end([END], [END]) == [END]


def test_ends_are_the_tokenizers_the_models_and_the_templates():
    model, tokenizer = tiny_model(), copy.deepcopy(tiny_tokenizer())
    model.generation_config = GenerationConfig(eos_token_id=[7, END])
    assert end_token_ids(model, tokenizer) == [7, END]
    # As SmolLM2's, whose template writes another token than the tokenizer's and the model's.
    tokenizer.eos_token = "<|endoftext|>"
    model.generation_config = GenerationConfig(eos_token_id=7)
    assert end_token_ids(model, tokenizer) == sorted([7, PAD, END])
    assert end_of_turn_id(tokenizer) == END


def test_a_template_without_an_end_leaves_the_others_and_cannot_be_taught():
    model, tokenizer = tiny_model(), copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|im_end|>", "")
    model.generation_config = GenerationConfig()
    assert end_token_ids(model, tokenizer) == [END]
    with pytest.raises(UserError, match="ends an assistant's message with no special token"):
        end_of_turn_id(tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="names an end of a turn"):
        end_token_ids(model, tokenizer)
