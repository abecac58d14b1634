import random
from itertools import pairwise

import numpy as np
import pytest

from grpo_ao.mini.questions import Question, ask
from grpo_ao.mini.world import make_message
from grpo_ao.oracle.prompt import build_oracle_prompt
from grpo_ao.oracle.spec import OracleSpec
from tools.mini_world import corpus
from tools.mini_world.build import WEIGHTS
from tools.mini_world.corpus import (
    ANSWER,
    COUNTED,
    LONGEST_RUN,
    NUMBER,
    encode,
    number_segments,
    oracle_examples,
    oracle_segments,
    oracle_set,
    pretraining_rows,
    pretraining_segments,
    training_messages,
)

LAYERS = [2, 4, 6]


def weighted_text(tokenizer, ids, weights, weight):
    return tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w == weight])


def test_weights_follow_the_pieces_of_a_row(tokenizer):
    rows = [[("Name", 0.5), (" the job", 4.0), (".", 0.0)], [("Yes", 4.0)]]
    ids_BL, weight_BL = encode(tokenizer, rows, 8, whole=True)
    assert tokenizer.decode(ids_BL[0], skip_special_tokens=True) == "Name the job."
    assert weighted_text(tokenizer, ids_BL[0], weight_BL[0], 4.0).strip() == "the job"
    assert (ids_BL[1, 1:] == tokenizer.pad_token_id).all()
    assert weight_BL[1].tolist() == [4.0] + [0.0] * 7


def test_a_row_that_does_not_fit_is_cut_or_refused(tokenizer):
    row = [[("one two three four five six", 1.0)]]
    ids_BL, _ = encode(tokenizer, row, 4, whole=False)
    assert ids_BL.shape == (1, 4)
    assert (ids_BL != tokenizer.pad_token_id).all()
    with pytest.raises(ValueError, match="tokens, more than 4: 'one two"):
        encode(tokenizer, row, 4, whole=True)


def test_a_pretraining_row_teaches_answers_most_and_numbers_least(tokenizer):
    message = make_message(3, 1)
    segments = pretraining_segments(message, random.Random(0), LAYERS)
    ids_BL, weight_BL = encode(tokenizer, [segments], 2000, whole=True)
    answers = weighted_text(tokenizer, ids_BL[0], weight_BL[0].astype(float), ANSWER)
    said = [text.strip() for text in answers.split("<|im_end|>") if text]
    assert said
    assert set(said) <= {
        q.answer for seed in range(40) for q in ask(message, random.Random(seed), "train")
    }
    numbers = weighted_text(tokenizer, ids_BL[0], weight_BL[0], np.float16(NUMBER))
    assert numbers.isdigit()


def test_lines_of_numbers_stay_between_0_and_100(tokenizer):
    rng = random.Random(0)
    for _ in range(300):
        line = number_segments(rng)
        numbers = [int(text) for text, weight in line if weight == COUNTED]
        assert numbers
        assert min(numbers) >= 0
        assert max(numbers) <= 100
        opening = line[0][0]
        if opening == "Rise:":
            assert numbers == sorted(set(numbers))
        if opening == "Fall:":
            assert numbers == sorted(set(numbers), reverse=True)
        if opening == "Count:":
            assert len({b - a for a, b in pairwise(numbers)}) <= 1


def test_an_oracle_example_is_the_oracles_prompt_and_learns_the_answer(tokenizer):
    question = Question("Is it late ?", "Yes", "closed", "topic", "")
    segments = oracle_segments(question, 4, 3, random.Random(0))
    text = "".join(piece for piece, _ in segments)
    prompt = build_oracle_prompt(tokenizer, (4,), 3, question.text, OracleSpec())
    assert text.startswith(prompt.text)
    ids_BL, weight_BL = encode(tokenizer, [segments], 72, whole=True)
    assert ids_BL[0, : len(prompt.input_ids)].tolist() == prompt.input_ids
    assert not weight_BL[0, : len(prompt.input_ids)].any()
    assert weighted_text(tokenizer, ids_BL[0], weight_BL[0], 1.0) == " Yes<|im_end|>"
    # The number is noise: it stands between tokens of the form and has no weight itself.
    number = next(piece for piece, _ in segments if piece.isdigit())
    assert number not in weighted_text(tokenizer, ids_BL[0], weight_BL[0], 0.25)


def test_examples_say_where_their_placeholders_are(tokenizer):
    messages = [make_message(4, index) for index in range(20)]
    examples, questions = oracle_examples(
        tokenizer, messages, random.Random(0), 72, LAYERS, 4, "train"
    )
    placeholder = tokenizer.encode(" ?", add_special_tokens=False)[0]
    assert len(questions) == len(examples.ids_BL) == 80
    for row, question in enumerate(questions):
        prompt = build_oracle_prompt(
            tokenizer,
            LAYERS[examples.layer_B[row]],
            int(examples.run_B[row]),
            question.text,
            OracleSpec(),
        )
        start, run = examples.start_B[row], examples.run_B[row]
        assert prompt.positions == list(range(start, start + run))
        assert (examples.ids_BL[row, start : start + run] == placeholder).all()
    assert examples.text_B.tolist() == [index for index in range(20) for _ in range(4)]
    assert 0.65 < (examples.run_B == LONGEST_RUN).mean() < 0.9
    assert examples.run_B.min() < 5


def test_held_out_examples_read_20_positions(tokenizer):
    messages = [make_message(4, index) for index in range(10)]
    examples, _ = oracle_examples(tokenizer, messages, random.Random(0), 72, LAYERS, 100, "heldout")
    assert set(examples.run_B.tolist()) == {LONGEST_RUN}


def test_rows_and_examples_of_several_processes_are_in_order(tokenizer, monkeypatch):
    monkeypatch.setattr(corpus, "_CHUNK", 30)
    base = WEIGHTS / "base"
    messages = training_messages(0, 10, 60)
    rows = pretraining_rows(base, 0, 10, 60, 64, LAYERS, 0.1, workers=2)
    assert rows.ids_BL.shape == rows.weight_BL.shape == (len(messages), 64)
    texts, examples = oracle_set(base, 0, 10, 60, 72, LAYERS, 2, workers=2)
    assert texts == [message.text for message in messages]
    # The texts' numbers go on where those of the chunk before ended.
    assert examples.text_B.tolist() == [i for i in range(len(texts)) for _ in range(2)]
    again, _ = oracle_set(base, 0, 10, 60, 72, LAYERS, 2, workers=1)
    assert again == texts
