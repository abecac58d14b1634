"""What number is taught: the oracle's own probability, recalibrated on other texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import rankdata

from grpo_ao.probe import Positions, Probe, QuestionKind
from grpo_ao.training.targets import (
    ENOUGH,
    cross_fitted,
    expected_grades,
    pools_of,
)


def some_probes(count, family="family", kind: QuestionKind = "closed"):
    return [
        Probe(f"{family} text {n}", "Is it?", kind, (2,), Positions.parse("last:3"), "Yes", family)
        for n in range(count)
    ]


NAN = float("nan")


def floats(*values):
    return np.array(values, dtype=float)


# Recalibration


def test_log_odds_are_fitted_on_the_other_fold():
    # Fold 0 is right as often as the logistic curve of half the log odds says.
    probability = np.repeat(np.linspace(0.02, 0.98, 400), 2)
    truth = expit(logit(probability) / 2)
    folds = [n % 2 for n in range(800)]
    asked = np.array(folds) == 1
    found = cross_fitted(probability, np.where(asked, np.nan, truth), ["a"] * 800, folds)
    assert found[asked] == pytest.approx(truth[asked], abs=0.02)


def test_an_ungraded_answer_counts_for_nothing():
    # All at .5: one of two right, and one that is not graded.
    found = cross_fitted(floats(*[0.5] * 4), floats(1, 0, NAN, NAN), ["a"] * 4, [0, 0, 0, 1])
    assert found[3] == pytest.approx(0.5, abs=1e-3)


def test_a_pool_that_is_always_right_gets_that():
    found = cross_fitted(floats(0.5, 0.7), floats(1, 0), ["a"] * 2, [0, 1])
    assert found[1] == pytest.approx(0.99)


def test_a_pool_without_other_folds_gets_the_mean_of_what_is_graded_elsewhere():
    pools, folds = ["a", "a", "b"], [0, 0, 1]
    found = cross_fitted(floats(0.2, 0.9, 0.4), floats(0.25, 0.5, 0.75), pools, folds)
    assert found == pytest.approx([0.75, 0.75, 3 / 8])
    assert cross_fitted(floats(0.2), floats(0.25), ["a"], [0]) == [0.5]


def test_a_fold_does_not_see_its_own_grades():
    rng = np.random.default_rng(0)
    probability, folds = rng.random(60), [n % 3 for n in range(60)]
    grade = rng.integers(0, 5, 60) / 4
    before = cross_fitted(probability, grade, ["a"] * 60, folds)
    own = np.array(folds) == 1
    after = cross_fitted(probability, np.where(own, 1 - grade, grade), ["a"] * 60, folds)
    assert (before[own] == after[own]).all()
    assert (before[~own] != after[~own]).any()


# Pools


def test_a_small_family_is_pooled_with_its_kind():
    probes = [
        *some_probes(ENOUGH, "large"),
        *some_probes(ENOUGH - 1, "small"),
        *some_probes(3, "large", "open"),
    ]
    pools = pools_of(probes)
    assert set(pools[:ENOUGH]) == {"own closed large"}
    assert set(pools[ENOUGH:-3]) == {"own closed"}
    assert set(pools[-3:]) == {"own open"}


def test_questions_on_wrong_activations_are_judged_among_themselves():
    probes = some_probes(2 * ENOUGH)
    pools = pools_of(probes, wrong=range(5))
    assert set(pools[:5]) == {"wrong closed"}
    assert set(pools[5:]) == {"own closed family"}
    # The oracle is as sure of both; it is right on its own activations alone.
    grade = np.where(np.arange(2 * ENOUGH) < ENOUGH, 0.0, 1.0)
    found = expected_grades(probes, np.full(2 * ENOUGH, 0.9), grade, wrong=range(ENOUGH))
    assert found[:ENOUGH].max() < 0.1
    assert found[ENOUGH:].min() > 0.9


# Numbers


def test_a_number_knows_more_than_its_familys_mean():
    """The chance of being right varies by question, and the oracle's own probability shows it."""
    rng = np.random.default_rng(2)
    chance = rng.uniform(0.2, 0.95, 4000)
    probability = chance**2  # sure in the right order, by the wrong amount
    grade = rng.binomial(1, chance).astype(float)
    found = expected_grades(some_probes(4000), probability, grade)
    assert np.abs(found - chance).mean() < 0.05
    assert np.abs(grade.mean() - chance).mean() > 0.1
    assert np.corrcoef(rankdata(found), rankdata(chance))[0, 1] > 0.95


def test_a_questions_own_grade_does_not_enter_its_number():
    rng = np.random.default_rng(3)
    probability = rng.random(600)
    grade = rng.binomial(1, probability).astype(float)
    other = grade.copy()
    other[0] = 1 - grade[0]
    before, after = (expected_grades(some_probes(600), probability, g) for g in (grade, other))
    assert before[0] == after[0]
    assert (before != after).any()


@given(st.lists(st.tuples(st.floats(0, 1), st.none() | st.floats(0, 1)), min_size=1, max_size=30))
def test_a_number_is_a_probability_whatever_was_graded(questions):
    probabilities, grades = zip(*questions, strict=True)
    found = expected_grades(
        some_probes(len(questions)), floats(*probabilities), np.array(grades, dtype=float)
    )
    assert ((found > 0) & (found < 1)).all()
