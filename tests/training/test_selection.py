"""What ships: the best on validation texts, and the warm start if nothing is better."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerControl, TrainerState

from grpo_ao.answer import Answer
from grpo_ao.measuring.metrics import Columns
from grpo_ao.processes import Processes
from grpo_ao.training.selection import Selection, is_better, squared_errors
from tests.rigs import adapter_weights, make_oracle, probe

NAN = float("nan")


def columns(confidence, informativeness):
    count = len(confidence)
    return Columns(
        np.array(confidence, dtype=float),
        np.array(informativeness, dtype=float),
        np.zeros(count, dtype=bool),
        np.array(["family"] * count),
        np.array([f"text {n}" for n in range(count)]),
    )


def test_errors_by_hand_and_a_quarter_where_nothing_is_stated():
    found = squared_errors(columns([0.8, NAN, 1.0], [1.0, 1.0, 0.0]))
    assert found == pytest.approx([0.04, 0.25, 1.0])


def test_the_lower_brier_score_is_better_if_answers_are_as_good():
    right = [1.0, 0.0] * 50
    before = columns([0.6] * 100, right)
    assert is_better(columns([0.5] * 100, right), before)
    assert not is_better(columns([0.7] * 100, right), before)
    assert not is_better(before, before)


def test_better_numbers_do_not_make_up_for_worse_answers():
    before = columns([0.6] * 100, [1.0, 0.0] * 50)
    sure_and_wrong = columns([0.0] * 100, [0.0] * 100)
    assert not is_better(sure_and_wrong, before)
    # Three of a hundred answers less, five lost and two gained, are within chance.
    answers = [1.0, 0.0] * 50
    answers[0:10:2] = [0.0] * 5
    answers[1:5:2] = [1.0] * 2
    assert is_better(columns([0.5] * 100, answers), before)


def test_ungraded_probes_are_left_out():
    before = columns([0.6, 0.6, 0.6], [1.0, NAN, 0.0])
    assert is_better(columns([0.5, 0.0, 0.5], [1.0, 1.0, 0.0]), before)
    assert not is_better(columns([0.5], [NAN]), columns([0.9], [0.0]))


unit = st.floats(0, 1)


@given(st.lists(st.tuples(unit, unit, unit, unit), min_size=1, max_size=20))
def test_of_two_at_most_one_is_better(rows):
    first = columns([r[0] for r in rows], [r[1] for r in rows])
    second = columns([r[2] for r in rows], [r[3] for r in rows])
    assert not (is_better(first, second) and is_better(second, first))


# The adapter that is kept


def answers_stating(confidence):
    """Ten answers, half of them right, all with one confidence."""
    tag = f"[epistemic status: {confidence}] Yes"
    read = [Answer.read(probe(n), tag) for n in range(10)]
    return [
        Answer(a.probe, a.completion, (), a.confidence, a.answer, informativeness=float(n % 2))
        for n, a in enumerate(read)
    ]


def go_through(folder, oracle, stated, resume_at=0):
    """Move the adapter at every step; ``stated[step]`` is the confidence that it states then."""
    asked = []

    def ask(step):
        asked.append(step)
        return answers_stating(stated[step])

    selection = Selection(oracle, Processes(), folder, ask, every=2)
    selection.begin()
    for step in range(resume_at + 1, 6):
        for parameter in oracle.model.parameters():
            if parameter.requires_grad:
                parameter.data += 1.0
        state = TrainerState(global_step=step, max_steps=5)
        selection.on_save(None, state, TrainerControl())
    return selection, asked


def moved_by(oracle, start):
    (name, weight) = next(iter(adapter_weights(oracle).items()))
    return (weight - start[name]).mean().item()


def test_the_best_of_the_measured_steps_is_restored(tmp_path):
    oracle = make_oracle()
    start = adapter_weights(oracle)
    selection, asked = go_through(tmp_path, oracle, {0: 90, 2: 60, 4: 80, 5: 55})
    assert asked == [0, 2, 4, 5]
    assert selection.restore() == "GRPO, step 5"
    selection, _ = go_through(tmp_path / "other", make_oracle(), {0: 90, 2: 60, 4: 80, 5: 70})
    assert selection.restore() == "GRPO, step 2"
    assert moved_by(oracle, start) == pytest.approx(5.0, abs=1e-5)


def test_the_warm_start_is_restored_where_nothing_is_better(tmp_path):
    oracle = make_oracle()
    start = adapter_weights(oracle)
    selection, _ = go_through(tmp_path, oracle, {0: 55, 2: 60, 4: 80, 5: 70})
    assert moved_by(oracle, start) == pytest.approx(5.0, abs=1e-5)
    assert selection.restore() is None
    for name, weight in adapter_weights(oracle).items():
        torch.testing.assert_close(weight, start[name])


def test_a_resumed_run_compares_with_the_best_before_it(tmp_path):
    oracle = make_oracle()
    go_through(tmp_path, oracle, {0: 90, 2: 52, 4: 80, 5: 70})
    selection, asked = go_through(tmp_path, oracle, {2: 52, 4: 60, 5: 60}, resume_at=2)
    assert asked == [2, 4, 5]
    assert selection.restore() == "GRPO, step 2"
    assert json.loads((tmp_path / "complete.json").read_text())["step"] == 2


def test_a_resumed_run_compares_the_step_that_it_goes_on_from_first(tmp_path):
    oracle, state = make_oracle(), TrainerState(global_step=2, max_steps=5)
    asked = []

    def ask(step):
        asked.append(step)
        return answers_stating({0: 90, 2: 52}[step])

    selection = Selection(oracle, Processes(), tmp_path, ask, every=2)
    selection.begin()
    selection.on_train_begin(None, TrainerState(global_step=0, max_steps=5), TrainerControl())
    assert asked == [0]
    selection.on_train_begin(None, state, TrainerControl())
    assert asked == [0, 2]
    assert selection.restore() == "GRPO, step 2"


def test_the_best_so_far_is_asked_anew_with_its_own_adapter(tmp_path):
    first = make_oracle()
    start, asked = adapter_weights(first), []
    go_through(tmp_path, first, {0: 90, 2: 52, 4: 80, 5: 70})
    oracle = make_oracle()

    def ask(step):
        asked.append((step, moved_by(oracle, start)))
        return answers_stating(52)

    Selection(oracle, Processes(), tmp_path, ask, every=2).begin()
    assert asked == [(2, pytest.approx(2.0, abs=1e-5))]
