import random
from itertools import pairwise

import numpy as np

from grpo_ao.mini.questions import questions_about
from grpo_ao.mini.world import make_message
from tools.mini_world import corpus
from tools.mini_world.build import WEIGHTS
from tools.mini_world.corpus import (
    ANSWER,
    COUNTED,
    NUMBER,
    encode,
    number_segments,
    pretraining_rows,
    pretraining_segments,
    training_messages,
)

LAYERS = [2, 4, 6]


def weighted_text(tokenizer, ids, weights, weight):
    return tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w == weight])


def test_weights_follow_the_pieces_of_a_row(tokenizer):
    rows = [[("Name", 0.5), (" the job", 4.0), (".", 0.0)], [("Yes", 4.0)]]
    ids_BL, weight_BL = encode(tokenizer, rows, 8)
    assert tokenizer.decode(ids_BL[0], skip_special_tokens=True) == "Name the job."
    assert weighted_text(tokenizer, ids_BL[0], weight_BL[0], 4.0).strip() == "the job"
    assert (ids_BL[1, 1:] == tokenizer.pad_token_id).all()
    assert weight_BL[1].tolist() == [4.0] + [0.0] * 7


def test_a_row_that_does_not_fit_is_cut(tokenizer):
    row = [[("one two three four five six", 1.0)]]
    ids_BL, _ = encode(tokenizer, row, 4)
    assert ids_BL.shape == (1, 4)
    assert (ids_BL != tokenizer.pad_token_id).all()


def test_a_pretraining_row_teaches_answers_most_and_numbers_least(tokenizer):
    message = make_message(3, 1)
    segments = pretraining_segments(message, random.Random(0), LAYERS)
    ids_BL, weight_BL = encode(tokenizer, [segments], 2000)
    answers = weighted_text(tokenizer, ids_BL[0], weight_BL[0].astype(float), ANSWER)
    said = [text.strip() for text in answers.split("<|im_end|>") if text]
    assert said
    assert set(said) <= {
        q.answer
        for seed in range(40)
        for q in questions_about(message, random.Random(seed), "train")
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


def test_rows_of_several_processes_are_in_order(tokenizer, monkeypatch):
    monkeypatch.setattr(corpus, "_CHUNK", 30)
    base = WEIGHTS / "base"
    two, one = (pretraining_rows(base, 0, 10, 60, 64, LAYERS, 0.1, workers=n) for n in (2, 1))
    assert two.ids_BL.shape == two.weight_BL.shape == (len(training_messages(0, 10, 60)), 64)
    assert (two.ids_BL == one.ids_BL).all()
