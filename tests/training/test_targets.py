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


def floats(*values):
    return np.array(values, dtype=float)


# Recalibration


def test_log_odds_are_fitted_on_the_other_fold():
    # Fold 0 is right as often as the logistic curve of half the log odds says.
    probability = np.linspace(0.02, 0.98, 400)
    truth = expit(logit(probability) / 2)
    folds = [n % 2 for n in range(400)]
    count = np.where(np.array(folds) == 0, 1000, 0)
    found = cross_fitted(probability, truth * count, count, ["a"] * 400, folds)
    asked = np.array(folds) == 1
    assert found[asked] == pytest.approx(truth[asked], abs=0.002)


def test_questions_weigh_as_many_as_their_samples():
    # All at .5: right in 1 of 1 and 0 of 3.
    found = cross_fitted(
        floats(0.5, 0.5, 0.5), floats(1, 0, 0), np.array([1, 3, 0]), ["a"] * 3, [0, 0, 1]
    )
    assert found[2] == pytest.approx(0.25, abs=1e-3)


def test_a_pool_that_is_always_right_gets_that():
    found = cross_fitted(floats(0.5, 0.7), floats(3, 0), np.array([3, 0]), ["a"] * 2, [0, 1])
    assert found[1] == pytest.approx(0.99)


def test_a_pool_without_other_folds_gets_the_mean_of_what_is_graded_elsewhere():
    pools, folds = ["a", "a", "b"], [0, 0, 1]
    found = cross_fitted(floats(0.2, 0.9, 0.4), floats(1, 2, 3), np.array([4, 4, 4]), pools, folds)
    assert found == pytest.approx([0.75, 0.75, 3 / 8])
    assert cross_fitted(floats(0.2), floats(1), np.array([1]), ["a"], [0]) == [0.5]


def test_a_fold_does_not_see_its_own_grades():
    rng = np.random.default_rng(0)
    probability, folds = rng.random(60), [n % 3 for n in range(60)]
    total, count = rng.integers(0, 5, 60).astype(float), np.full(60, 4)
    before = cross_fitted(probability, total, count, ["a"] * 60, folds)
    own = np.array(folds) == 1
    after = cross_fitted(probability, np.where(own, 4 - total, total), count, ["a"] * 60, folds)
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
    total = np.where(np.arange(2 * ENOUGH) < ENOUGH, 0.0, 4.0)
    asked = np.full(2 * ENOUGH, 0.9), total, np.full(2 * ENOUGH, 4)
    found = expected_grades(probes, *asked, wrong=range(ENOUGH))
    assert found[:ENOUGH].max() < 0.1
    assert found[ENOUGH:].min() > 0.9


# Numbers


def test_a_number_knows_more_than_its_familys_mean():
    """The chance of being right varies by question, and the oracle's own probability shows it."""
    rng = np.random.default_rng(2)
    chance = rng.uniform(0.2, 0.95, 2000)
    probability = chance**2  # sure in the right order, by the wrong amount
    count = np.full(2000, 4)
    total = rng.binomial(4, chance).astype(float)
    found = expected_grades(some_probes(2000), probability, total, count)
    assert np.abs(found - chance).mean() < 0.05
    assert np.abs(total / 4 - chance).mean() > 0.1
    assert np.corrcoef(rankdata(found), rankdata(chance))[0, 1] > 0.95


def test_a_questions_own_grades_do_not_enter_its_number():
    rng = np.random.default_rng(3)
    probability, count = rng.random(600), np.full(600, 4)
    total = rng.binomial(4, probability).astype(float)
    other = total.copy()
    other[0] = 4 - total[0]
    before, after = (
        expected_grades(some_probes(600), probability, t, count) for t in (total, other)
    )
    assert before[0] == after[0]
    assert (before != after).any()


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.lists(st.floats(0, 1), max_size=4)), min_size=1, max_size=30
    )
)
def test_a_number_is_a_probability_whatever_was_sampled(questions):
    found = expected_grades(
        some_probes(len(questions)),
        floats(*(probability for probability, _ in questions)),
        floats(*(sum(grades) for _, grades in questions)),
        np.array([len(grades) for _, grades in questions]),
    )
    assert ((found > 0) & (found < 1)).all()
