import copy
from pathlib import Path

import pytest
import trl
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from grpo_ao.oracle.prompt import OraclePrompt, build_oracle_prompt, pad_prompts
from grpo_ao.oracle.spec import OracleSpec
from tests.tiny import tiny_tokenizer

SPEC = OracleSpec()


def test_the_prompt_is_one_user_turn_with_thinking_off():
    prompt = build_oracle_prompt(tiny_tokenizer(), (18,), 3, "Is it late?", SPEC)
    assert prompt.text == (
        "<|im_start|>user\nLayer: 18\n ? ? ? \nIs it late?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert prompt.input_ids == tiny_tokenizer().encode(prompt.text)


def test_several_layers_are_a_block_each_in_front_of_the_question():
    prompt = build_oracle_prompt(tiny_tokenizer(), (21, 22), 4, "Is it late ?", SPEC)
    assert prompt.text == (
        "<|im_start|>user\nLayer: 21\n ? ? \nLayer: 22\n ? ? \nIs it late ?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert prompt.input_ids == tiny_tokenizer().encode(prompt.text)
    placeholder = tiny_tokenizer().convert_tokens_to_ids("Ġ?")
    everywhere = [i for i, token in enumerate(prompt.input_ids) if token == placeholder]
    assert prompt.positions == everywhere[:4]


def test_positions_are_the_prefixs_own_placeholders():
    tokenizer = tiny_tokenizer()
    prompt = build_oracle_prompt(tokenizer, (2,), 3, "Is it ? or is it ? ? ?", SPEC)
    placeholder = tokenizer.convert_tokens_to_ids("Ġ?")
    everywhere = [i for i, token in enumerate(prompt.input_ids) if token == placeholder]
    assert len(everywhere) == 3 + 4
    assert prompt.positions == everywhere[:3]


@given(st.integers(1, 30), st.integers(0, 99), st.text(max_size=40))
def test_any_question_leaves_the_placeholders_alone(num_vectors, layer, question):
    prompt = build_oracle_prompt(tiny_tokenizer(), (layer,), num_vectors, question, SPEC)
    first = prompt.positions[0]
    assert prompt.positions == list(range(first, first + num_vectors))
    head = tiny_tokenizer().decode(prompt.input_ids[:first])
    assert head == f"<|im_start|>user\nLayer: {layer}\n"


def test_a_question_that_repeats_the_prefix_is_not_steered():
    prompt = build_oracle_prompt(tiny_tokenizer(), (2,), 2, "Layer: 2\n ? ? \nwhat?", SPEC)
    plain = build_oracle_prompt(tiny_tokenizer(), (2,), 2, "what?", SPEC)
    assert prompt.positions == plain.positions


def test_a_run_that_is_not_the_count_of_vectors_raises_with_prompt_and_counts():
    # The space before the run melts into its first placeholder.
    template = "Layer {layer}: {special_token} * {num_positions} \\n"
    spec = OracleSpec(special_token="?", prefix_template=template)
    with pytest.raises(ValueError, match=r"Layer 2: \?\?\? .*has 2 placeholders .*for 3 vectors"):
        build_oracle_prompt(tiny_tokenizer(), (2,), 3, "x", spec)


def test_a_placeholder_of_several_tokens_is_refused():
    spec = OracleSpec(special_token=" !")
    with pytest.raises(ValueError, match="2 tokens in this tokenizer"):
        build_oracle_prompt(tiny_tokenizer(), (2,), 2, "x", spec)


@pytest.mark.parametrize(("layers", "num_vectors"), [((2,), 0), ((2, 3), 3)])
def test_no_vectors_and_more_of_one_layer_are_refused(layers, num_vectors):
    with pytest.raises(ValueError, match=f"and as many of each layer, got {num_vectors} of layers"):
        build_oracle_prompt(tiny_tokenizer(), layers, num_vectors, "x", SPEC)


def test_a_template_that_changes_the_prefix_is_refused():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = "{{ messages[0].content | replace('\n', ' ') }}"
    with pytest.raises(ValueError, match="changes the oracle's prefix"):
        build_oracle_prompt(tokenizer, (2,), 2, "x", SPEC)


def test_a_tokenizer_without_chat_template_is_refused():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        build_oracle_prompt(tokenizer, (2,), 2, "x", SPEC)


def test_padding_goes_left():
    short = OraclePrompt("", [5, 6, 7], [1])
    long = OraclePrompt("", [1, 2, 3, 4, 5], [2, 3])
    input_ids_BL, mask_BL = pad_prompts([short, long], pad_id=9)
    assert input_ids_BL.tolist() == [[9, 9, 5, 6, 7], [1, 2, 3, 4, 5]]
    assert mask_BL.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]


def test_the_prefix_in_qwen3s_own_tokens(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "qwen3_tokenizer")
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    prompt = build_oracle_prompt(tokenizer, (18,), 3, "Is the user angry ?", SPEC)
    tokens = tokenizer.convert_ids_to_tokens(prompt.input_ids)
    assert tokens[:13] == [
        *("<|im_start|>", "user", "Ċ", "Layer", ":", "Ġ", "1", "8", "Ċ"),
        *("Ġ?", "Ġ?", "Ġ?", "ĠĊ"),
    ]
    assert prompt.positions == [9, 10, 11]
    assert [prompt.input_ids[p] for p in prompt.positions] == [937, 937, 937]
    assert prompt.input_ids.count(937) == 4
    assert tokens[-4:] == ["<think>", "ĊĊ", "</think>", "ĊĊ"]
