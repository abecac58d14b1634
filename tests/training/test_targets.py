"""What number is taught: priors from other texts, and what samples make of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from grpo_ao.probe import Positions, Probe, QuestionKind
from grpo_ao.training.targets import (
    ENOUGH,
    cross_fitted,
    pools_of,
    posterior_means,
    prior_weight,
)


def some_probes(count, family="family", kind: QuestionKind = "closed"):
    return [
        Probe(f"{family} text {n}", "Is it?", kind, (2,), Positions.parse("last:3"), "Yes", family)
        for n in range(count)
    ]


def floats(*values):
    return np.array(values, dtype=float)


# The prior


def test_a_prior_is_the_mean_grade_of_such_probabilities_in_other_folds_by_hand():
    # Fold 1 asks about .2 and .9; fold 0 says that .1 and .3 were right once in four, .9 always.
    probability = floats(0.1, 0.3, 0.9, 0.2, 0.9)
    found = cross_fitted(
        probability,
        sum_N=floats(0, 2, 4, 9, 0),
        count_N=np.array([4, 4, 4, 9, 9]),
        pools=["a"] * 5,
        folds=[0, 0, 0, 1, 1],
    )
    # Between .1 (never right) and .3 (half of the time) the fit is a line: .2 is right a quarter.
    assert found[3:] == pytest.approx([(0.01 + 0.5) / 2, 0.99])
    # Fold 1 knows .2 as always right and .9 as never: not monotone, so all of it is one half.
    assert found[:3] == pytest.approx([0.5, 0.5, 0.5])


def test_questions_weigh_as_many_as_their_samples():
    # Both at .5: right in 1 of 1 and 0 of 3.
    found = cross_fitted(
        floats(0.5, 0.5, 0.5), floats(1, 0, 0), np.array([1, 3, 0]), ["a"] * 3, [0, 0, 1]
    )
    assert found[2] == pytest.approx(0.25)


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


# The prior's weight


def drawn(weight, samples, questions=4000):
    """Priors, and grades whose chances are drawn around them from a beta of this weight."""
    rng = np.random.default_rng(5)
    prior = rng.uniform(0.1, 0.9, questions)
    chance = rng.beta(weight * prior, weight * (1 - prior))
    return prior, rng.binomial(samples, chance).astype(float), np.full(questions, samples)


@pytest.mark.parametrize("weight", [1.0, 4.0, 20.0])
def test_the_weight_that_made_the_samples_is_found(weight):
    assert prior_weight(*drawn(weight, samples=4)) == pytest.approx(weight, rel=0.25)


def test_samples_that_say_nothing_of_the_weight_leave_it_at_four():
    assert prior_weight(*drawn(2.0, samples=1)) == 4.0
    assert prior_weight(floats(0.5), floats(0), np.array([0])) == 4.0


def test_few_questions_move_the_weight_little():
    # One question, right four times of four against a prior of one half.
    assert 1.5 < prior_weight(floats(0.5), floats(4), np.array([4])) < 4


def test_a_prior_that_is_no_guide_weighs_least():
    # Every question is always right or always wrong, and the prior is one half.
    total = np.tile([0.0, 8.0], 50)
    assert prior_weight(np.full(100, 0.5), total, np.full(100, 8)) <= 0.5


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
    found = posterior_means(probes, *asked, wrong=range(ENOUGH))
    assert found[:ENOUGH].max() < 0.1
    assert found[ENOUGH:].min() > 0.9


# The posterior


def test_the_posterior_of_a_question_lies_between_its_samples_and_its_prior():
    # Nothing is known of other texts: a prior of one half.
    asked = floats(0.9), floats(4), np.array([4])
    weight = prior_weight(floats(0.5), *asked[1:])
    (found,) = posterior_means(some_probes(1), *asked)
    assert found == pytest.approx((4 + weight * 0.5) / (4 + weight))


def test_a_number_knows_more_than_its_familys_mean():
    """The chance of being right varies by question, and the oracle's own probability shows it."""
    rng = np.random.default_rng(2)
    chance = rng.uniform(0.2, 1.0, 2000)
    probability = chance**2  # sure in the right order, by the wrong amount
    count = np.full(2000, 4)
    total = rng.binomial(4, chance).astype(float)
    found = posterior_means(some_probes(2000), probability, total, count)
    assert np.abs(found - chance).mean() < 0.05
    assert np.abs(total / 4 - chance).mean() > 0.1
    assert np.corrcoef(rankdata(found), rankdata(chance))[0, 1] > 0.95


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.lists(st.floats(0, 1), max_size=4)), min_size=1, max_size=30
    )
)
def test_a_posterior_is_a_probability_whatever_was_sampled(questions):
    found = posterior_means(
        some_probes(len(questions)),
        floats(*(probability for probability, _ in questions)),
        floats(*(sum(grades) for _, grades in questions)),
        np.array([len(grades) for _, grades in questions]),
    )
    assert ((found > 0) & (found < 1)).all()
