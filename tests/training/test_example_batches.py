"""Examples laid out as arrays, and read back from each row's tokens."""

import numpy as np
import pytest

from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.probes.items import Item
from grpo_ao.training.example_batches import AnswerFormat, Batch, Curriculum
from tests.tiny import tiny_tokenizer, token_id

LAYERS = ((1,), (2,), (1, 3))
PLAIN = [
    f"Plain text number {n}, long enough to foretell some of it from the rest." for n in range(9)
]
EXAMPLES = [
    Item(f"source {n % 2}", f"Text {n} ends in {'x' * (n % 7)}.", f"Is it {n} ? ?", f"No {n}")
    for n in range(40)
]


def curriculum(
    answer_format: AnswerFormat = "plain", context_share=0.4, plain=PLAIN, examples=EXAMPLES
):
    return Curriculum(
        tiny_tokenizer(),
        OracleSpec(act_layer_combinations=LAYERS),
        examples,
        plain,
        answer_format,
        context_share,
        200,
        7,
    )


def decoded(ids_N) -> str:
    return str(tiny_tokenizer().decode(ids_N))


def rows_of(batch: Batch):
    """Decode each row: prompt up to the answer, placeholders' ids, what is read, the answer."""
    length = batch.prompts_BL.shape[1]
    for b in range(len(batch.subject_BS)):
        mine = batch.row_N == b
        first = int(batch.predict_N[mine][0]) - b * length + 1
        held = batch.placeholders_BK[b][batch.placeholders_BK[b] >= 0]
        read, layers = batch.read_BK[b][batch.read_BK[b] >= 0], batch.layer_BK[b]
        assert len(held) == len(read)
        layers = layers[layers >= 0].tolist()
        combination = tuple(dict.fromkeys(layers))
        # Every layer is read at the same positions, in the order of the prompt.
        read = read[: len(layers) // len(combination)]
        assert combination in LAYERS
        assert layers == [layer for layer in combination for _ in read]
        assert batch.read_BK[b][: len(layers)].tolist() == read.tolist() * len(combination)
        prefix = "".join(f"Layer: {layer}\n{' ?' * len(read)} \n" for layer in combination)
        assert decoded(batch.prompts_BL[b]).startswith(f"<|im_start|>user\n{prefix}")
        yield (
            decoded(batch.prompts_BL[b, :first]),
            set(batch.prompts_BL[b, held].tolist()),
            decoded(batch.subject_BS[b, read]),
            decoded(batch.targets_N[mine]),
        )


def test_a_question_is_asked_with_its_own_text_and_answer():
    lessons = curriculum(context_share=0.0)
    drawn = lessons.batch(0, 16)
    for text, row in zip(drawn.text_B, rows_of(lessons.lay_out(drawn)), strict=True):
        prompt, placeholders, read, answer = row
        example = EXAMPLES[text]
        assert f" \n{example.question}<|im_end|>\n<|im_start|>assistant\n" in prompt
        assert placeholders == {token_id("Ġ?")}
        assert read in f"{example.text}<|im_end|>\n"
        assert answer == f"{example.target}<|im_end|>"


@pytest.mark.parametrize("answer_format", ["plain", "tagged"])
def test_a_control_token_in_a_question_or_an_answer_is_its_text(answer_format):
    odd = Item("odd", "A text.", "What is <|im_end|>?", "The <|im_end|> of a turn")
    lessons = curriculum(answer_format, context_share=0.0, examples=[odd])
    batch = lessons.lay_out(lessons.batch(0, 4))
    for prompt, _, _, answer in rows_of(batch):
        assert " \nWhat is <|im_end|>?<|im_end|>\n<|im_start|>assistant\n" in prompt
        assert answer.endswith("The <|im_end|> of a turn<|im_end|>")
    # The turn's own ends alone: of the question, and of the answer.
    ends_B = (batch.prompts_BL == token_id("<|im_end|>")).sum(dim=1)
    assert ends_B.tolist() == [2] * 4


def test_what_is_foretold_lies_beside_what_is_read():
    lessons = curriculum(context_share=1.0)
    drawn = lessons.batch(0, 32)
    texts = list(dict.fromkeys([e.text for e in EXAMPLES] + PLAIN))
    for text, (prompt, _, read, answer) in zip(
        drawn.text_B, rows_of(lessons.lay_out(drawn)), strict=True
    ):
        told = answer.removesuffix("<|im_end|>")
        pair = read + told if "predict the next" in prompt else told + read
        assert pair in texts[text]


def test_a_tag_stands_before_the_answer_and_its_number_is_not_learned():
    lessons = curriculum("tagged", context_share=0.0)
    for _, _, _, answer in rows_of(lessons.lay_out(lessons.batch(0, 16))):
        assert answer.startswith("[epistemic status: ] No ")


def test_the_batch_of_a_step_is_the_same_whatever_was_drawn_before():
    one, other = curriculum(), curriculum()
    for step in (0, 63, 64):
        one.batch(step, 4)
    for mine, theirs in zip(one.batch(5, 4), other.batch(5, 4), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_texts_that_are_too_long_or_hold_control_tokens_are_left_out():
    odd = [Item("odd", "a" * 300, "Is it?", "Yes"), Item("odd", "<|im_end|>", "Is it?", "No")]
    lessons = curriculum(examples=[*EXAMPLES, *odd])
    assert lessons.left_out == 2
    assert lessons.sources == ["source 0", "source 1"]
    with pytest.raises(ValueError, match="no example is left"):
        curriculum(examples=odd, plain=[])
