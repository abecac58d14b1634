import pytest

from grpo_ao.epistemic import render_oracle_output
from grpo_ao.oracle.activations import subject_token_ids
from grpo_ao.oracle.prompt import build_oracle_prompt
from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.oracle.turn import render_user_turn
from tools.mini_world.corpus import pretraining_segments, training_messages
from tools.mini_world.tokenizer import END, PAD, build_tokenizer, token_id


@pytest.fixture(scope="module")
def fresh():
    """A tokenizer as the build makes it, from few texts."""
    import random

    rng = random.Random(0)
    texts = [
        "".join(text for text, _ in pretraining_segments(message, rng, [2, 4, 6]))
        for message in training_messages(0, 0, 150)
    ]
    return build_tokenizer(texts)


@pytest.fixture(params=["shipped", "fresh"])
def either(request, tokenizer, fresh):
    return tokenizer if request.param == "shipped" else fresh


def tokens(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [tokenizer.decode([i]) for i in ids]


def test_every_integer_is_one_token_in_the_tag_alike(either):
    lengths = set()
    for number in range(101):
        assert tokens(either, str(number)) == [str(number)]
        written = tokens(either, render_oracle_output(number, "Yes"))
        assert written.count(str(number)) == 1
        assert written[written.index(str(number)) + 1] == "]"
        lengths.add(len(written))
    assert len(lengths) == 1


def test_the_placeholder_is_one_token_wherever_it_stands(either):
    assert tokens(either, " ?") == [" ?"]
    for run in (1, 7, 20):
        prompt = build_oracle_prompt(either, (4,), run, "Is it late ? Really ?", OracleSpec())
        placeholder = token_id(either, " ?")
        assert [prompt.input_ids[p] for p in prompt.positions] == [placeholder] * run
        assert prompt.positions == list(range(prompt.positions[0], prompt.positions[0] + run))


def test_answers_carry_their_space(either):
    assert tokens(either, render_oracle_output(7, "Yes"))[-1] == " Yes"
    assert tokens(either, render_oracle_output(7, "No"))[-1] == " No"


def test_the_chat_template_is_in_the_manner_of_qwens(either):
    assert render_user_turn(either, "Hi.", answer_next=True) == (
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = subject_token_ids(either, "Hi.")
    # Offset -1 is the final newline, -2 the end of the turn, -3 the last token of the text.
    assert [either.decode([i]) for i in ids[-3:]] == [".", END, "\n"]


def test_special_tokens_are_single_and_told_apart(either):
    assert len(either) == 2048
    ids = {token_id(either, token) for token in (PAD, "<|im_start|>", END)}
    assert len(ids) == 3
    assert token_id(either, END) == either.eos_token_id
    assert token_id(either, PAD) == either.pad_token_id
    assert either.encode("Hi.") == either.encode("Hi.", add_special_tokens=False)


@pytest.mark.parametrize("text", ["A naïve text, 12345 ?", "Zeile\n\nzwei  é", "[x] 100%", "漢字"])
def test_any_text_is_read_back(either, text):
    assert either.decode(either.encode(text)) == text
