"""The warm start: what is taught, and with what weight."""

import random
from dataclasses import replace

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from grpo_ao.answer import Answer
from grpo_ao.config import MINI_WEIGHTS
from grpo_ao.epistemic import parse_oracle_output
from grpo_ao.measuring.elicited import expected_confidences
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.probe import fold_of
from grpo_ao.processes import Processes
from grpo_ao.training.warm_start import (
    ANSWER_WEIGHT,
    FORMAT_WEIGHT,
    NUMBER_WEIGHT,
    chances,
    make_targets,
    own_expectations,
    parts,
)
from tests.rigs import make_oracle, planted_table, probe

# Targets


@pytest.fixture(scope="module")
def oracle():
    return make_oracle()


@pytest.fixture(scope="module")
def mini():
    return PreTrainedTokenizerFast.from_pretrained(MINI_WEIGHTS / "base")


def targets_of(tokenizer, given, chances=(0.5,), seed=0, tagged=True, wrong=()):
    """The targets of pairs of answer and grade; one chance serves all, None is random numbers."""
    tag = "[epistemic status: 71] " if tagged else ""
    answers = [
        replace(Answer.read(probe(row), tag + said), answer=said, informativeness=grade)
        for row, (said, grade) in enumerate(given)
    ]
    if chances is not None and len(chances) == 1:
        chances = [*chances] * len(given)
    return make_targets(tokenizer, range(len(given)), answers, chances, random.Random(seed), wrong)


def spelled(tokenizer, target):
    return [
        (tokenizer.decode([i]), weight)
        for i, weight in zip(target.token_ids, target.weights, strict=True)
    ]


def test_a_target_is_an_own_answer_behind_its_chance_to_be_right(mini):
    right, wrong = targets_of(mini, [("Yes", 1.0), ("No", 0.0)], chances=(0.62, 0.88))
    assert mini.decode(right.token_ids) == "[epistemic status: 62] Yes<|im_end|>"
    assert mini.decode(wrong.token_ids) == "[epistemic status: 88] No<|im_end|>"
    assert [right.row, wrong.row] == [0, 1]


@pytest.mark.parametrize("tagged", [True, False])
def test_a_control_token_in_an_answer_is_its_text(mini, tagged):
    (target,) = targets_of(mini, [("a <|im_end|> sat", 1.0)], tagged=tagged)
    for ids in (target.token_ids, target.origin_ids):
        assert mini.decode(ids).endswith("a <|im_end|> sat<|im_end|>")
        assert ids.count(mini.convert_tokens_to_ids("<|im_end|>")) == 1


def test_behind_the_number_a_tagged_answer_is_kept_as_it_stands(mini):
    (target,) = targets_of(mini, [("a cat", 1.0)])
    assert target.origin_ids == target.token_ids
    assert mini.decode(target.token_ids[-target.kept :]) == "] a cat<|im_end|>"


def test_an_answer_to_an_open_question_is_not_held_to_its_start(mini):
    asked = replace(probe(0), kind="open")
    answer = replace(Answer.read(asked, "a cat"), informativeness=1.0)
    (target,) = make_targets(mini, [0], [answer], [0.5], random.Random(0))
    assert target.kept == 0
    assert mini.decode(target.token_ids).endswith("] a cat<|im_end|>")


def test_an_answer_without_a_tag_is_kept_whole_where_only_its_first_space_is_new(mini):
    (target,) = targets_of(mini, [("a cat sat", 1.0)], tagged=False)
    assert mini.decode(target.origin_ids) == "a cat sat<|im_end|>"
    assert mini.decode(target.token_ids[-target.kept :]) == " a cat sat<|im_end|>"
    assert len(target.origin_ids) == target.kept


def test_of_an_answer_without_a_tag_is_kept_what_is_tokenised_alike(mini):
    # "No" is no token of the mini world without its space: it is spelled in two.
    (target,) = targets_of(mini, [("No a cat", 1.0)], tagged=False)
    assert mini.decode(target.token_ids[-target.kept :]) == " a cat<|im_end|>"
    assert target.origin_ids[-target.kept :] == target.token_ids[-target.kept :]


def test_no_part_of_the_tag_is_kept_of_an_answer_that_resembles_one(mini):
    # "62] Yes" as an answer without a tag ends like the target that says 62.
    samples = [("50] Yes", 0.5)]
    (target,) = targets_of(mini, samples, tagged=False)
    kept = mini.decode(target.token_ids[-target.kept :])
    assert mini.decode(target.token_ids) == "[epistemic status: 50] 50] Yes<|im_end|>"
    assert "epistemic" not in kept
    assert not kept.startswith("50] 50]")


def test_weights_tell_form_number_and_answer_apart(mini):
    right, half, wrong = targets_of(mini, [("a cat", 1.0), ("a dog", 0.5), ("a fox", 0.0)])
    for target, grade in ((right, 1.0), (half, 0.5), (wrong, 0.0)):
        pieces = spelled(mini, target)
        number = [weight for piece, weight in pieces if piece == "50"]
        assert number == [NUMBER_WEIGHT]
        closing = [piece for piece, _ in pieces].index("]")
        form = [weight for piece, weight in pieces[: closing + 1] if piece != "50"]
        assert set(form) == {FORMAT_WEIGHT}
        # The answer and its end weigh as much as its grade.
        assert {weight for _, weight in pieces[closing + 1 :]} == {ANSWER_WEIGHT * grade}
        assert pieces[-1][0] == "<|im_end|>"


def test_answers_to_wrong_activations_are_not_taught(mini):
    samples = [("a cat", 1.0), ("a cat", 1.0)]
    own, guessed = targets_of(mini, samples, wrong={1})
    assert ANSWER_WEIGHT in own.weights
    assert set(guessed.weights) == {FORMAT_WEIGHT, NUMBER_WEIGHT, 0.0}
    assert guessed.kept == own.kept


def test_a_number_of_several_tokens_is_a_number_in_all_of_them(oracle):
    (target,) = targets_of(oracle.tokenizer, [("7 cats", 1.0)], None)
    pieces = spelled(oracle.tokenizer, target)
    written = parse_oracle_output("".join(piece for piece, _ in pieces[:-1]))
    assert written.confidence is not None
    numbers = [piece for piece, weight in pieces if weight == 0.0]
    assert "".join(numbers) == f"{100 * written.confidence:.0f}"
    assert written.answer == "7 cats"


def test_random_numbers_teach_no_belief(mini):
    samples = [("Yes", 1.0), ("No", 1.0)] * 40
    targets = targets_of(mini, samples, None)
    outputs = [parse_oracle_output(mini.decode(t.token_ids[:-1])) for t in targets]
    written = [100 * (output.confidence or 0.0) for output in outputs]
    assert len(set(written)) > 30
    for target, number in zip(targets, written, strict=True):
        assert dict(spelled(mini, target))[f"{number:.0f}"] == 0.0
    again = targets_of(mini, samples, None)
    assert again == targets
    assert targets_of(mini, samples, None, seed=1) != targets


def test_answers_that_no_tag_can_stand_before_are_left_out(mini):
    (kept,) = targets_of(mini, [("", 1.0), ("[epistemic status: 4] x", 1.0), ("Yes", 1.0)])
    assert kept.row == 2
    with pytest.raises(ValueError, match="no answer that a tag can be put in front of"):
        targets_of(mini, [("", 1.0), ("  ", 1.0)])


def test_an_ungraded_answer_is_left_out_and_the_others_stay(mini):
    (target,) = targets_of(mini, [("a cat", None), ("a dog", 1.0)])
    assert "a dog" in mini.decode(target.token_ids)


# Chances


def with_own_texts(table):
    """The table with another text in each row, so that numbers are recalibrated across rows."""
    probes = [replace(probe, text=f"text {row}") for row, probe in enumerate(table.probes)]
    return ProbeTable(probes, table.vectors, table.prompts)


def test_chances_are_the_answers_probabilities_as_they_turn_out(oracle):
    """Answers of probability .9 are right half of the time here, those of .2 never."""
    table = with_own_texts(planted_table(oracle, 240))
    answers = [
        replace(
            Answer.read(p, "x"),
            answer_probability=0.2 if row % 3 == 0 else 0.9,
            informativeness=float(row % 3 == 1),
        )
        for row, p in enumerate(table.probes)
    ]
    found = chances(oracle, table, answers, set(), Processes())
    assert max(found[0::3]) < 0.1
    assert found[1::3] == pytest.approx([0.5] * 80, abs=0.1)
    assert found[2::3] == pytest.approx([0.5] * 80, abs=0.1)


def test_expectations_are_recalibrated_in_the_order_of_the_numbers_that_are_written(oracle):
    table = with_own_texts(planted_table(oracle, 25))
    written = expected_confidences(oracle, table)
    graded = [
        replace(Answer.read(p, "x"), informativeness=float(number > np.median(written)))
        for p, number in zip(table.probes, written, strict=True)
    ]
    found = own_expectations(oracle, table, graded, set(), Processes())
    folds = [fold_of(p.text) for p in table.probes]
    for fold in set(folds):
        rows = [row for row in np.argsort(written) if folds[row] == fold]
        assert [found[row] for row in rows] == sorted(found[row] for row in rows)
        assert len(rows) == 1 or found[rows[0]] < found[rows[-1]]


# Parts


def test_most_are_taught_how_probable_answers_are_and_the_rest_what_is_made_of_it(oracle):
    (first, steps, known), (rest, others, expected) = parts("measured", 8, 400)
    assert (list(range(8))[first], steps, known) == ([0, 1, 2, 3, 4, 5], 300, chances)
    assert (list(range(8))[rest], others, expected) == ([6, 7], 100, own_expectations)
    assert [part[:2] for part in parts("measured", 1, 1)] == [(slice(1), 1)]
    ((everything, steps, numbers),) = parts("random", 9, 300)
    assert (list(range(9))[everything], steps) == (list(range(9)), 300)
    assert numbers(oracle, planted_table(oracle, 1), [], [], Processes()) is None
