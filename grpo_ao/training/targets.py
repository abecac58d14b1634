"""The number that a warm start teaches: how likely it is that an answer to a question is right.

A few graded samples of a question say little of it, and the mean of its family says nothing of the
question itself. The probability that the oracle gives to its own answer does: recalibrated on other
texts, it is the mean of a beta prior, which the question's samples turn into a posterior. How much
the prior weighs against them is estimated from the data.

Everything here is numpy, one entry a question: ``sum_N`` is the sum of its samples' grades,
``count_N`` how many there are.
"""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.special import betaln
from sklearn.isotonic import IsotonicRegression

from grpo_ao.probe import Probe, unit_draw

FOLDS = 5
# A family of fewer questions is pooled with the others of its kind, open or closed.
ENOUGH = 200
# A prior of 0 or 1 could not be moved by any number of samples.
_LEAST = 0.01
# Weights of the prior, in samples, as powers of two, and what is believed of them beforehand: about
# 4 samples, a factor of 4 either way. It decides where data are few, and nowhere else.
_LOG_WEIGHTS = np.arange(-1, 7.25, 0.25)
_LOG_MEAN, _LOG_DEVIATION = 2.0, 2.0


def posterior_means(
    probes: Sequence[Probe],
    probability_N: Float[np.ndarray, "questions"],
    sum_N: Float[np.ndarray, "questions"],
    count_N: Int[np.ndarray, "questions"],
    wrong: Collection[int] = (),
) -> Float[np.ndarray, "questions"]:
    """Return the expected grade of an answer to each question, between 0 and 1.

    ``probability_N`` is the oracle's probability of its own most frequent answer. Recalibration and
    weight are those of a question's family where that has ``ENOUGH`` questions, of its kind else.
    The questions ``wrong``, by their place, were asked on wrong activations: they are apart.
    """
    pools = pools_of(probes, wrong)
    folds = [int(unit_draw("fold", probe.text) * FOLDS) for probe in probes]
    prior_N = cross_fitted(probability_N, sum_N, count_N, pools, folds)
    mean_N = np.empty(len(probes))
    for pool in set(pools):
        of_pool = np.array([name == pool for name in pools])
        prior, total, count = prior_N[of_pool], sum_N[of_pool], count_N[of_pool]
        weight = prior_weight(prior, total, count)
        mean_N[of_pool] = (total + weight * prior) / (count + weight)
    return mean_N


def pools_of(probes: Sequence[Probe], wrong: Collection[int] = ()) -> list[str]:
    """Name the questions that each one is judged by: its family's if there are enough, its kind's.

    A family with questions of both kinds is two, and so is one with questions on ``wrong``
    activations.
    """
    asked_on = ["wrong" if place in wrong else "own" for place in range(len(probes))]
    kinds = [f"{on} {probe.kind}" for on, probe in zip(asked_on, probes, strict=True)]
    families = [f"{kind} {probe.family}" for kind, probe in zip(kinds, probes, strict=True)]
    names, counts = np.unique(families, return_counts=True)
    large = set(names[counts >= ENOUGH].tolist())
    return [f if f in large else kind for f, kind in zip(families, kinds, strict=True)]


def cross_fitted(
    probability_N: Float[np.ndarray, "questions"],
    sum_N: Float[np.ndarray, "questions"],
    count_N: Int[np.ndarray, "questions"],
    pools: Sequence[str],
    folds: Sequence[int],
) -> Float[np.ndarray, "questions"]:
    """Map each probability to the mean grade that such ones have in the pool's other folds.

    A monotone fit (Zadrozny, Elkan 2002), each question weighing as many as its samples. Questions
    whose pool has nothing graded in other folds get the mean of all that is graded elsewhere, and
    one half where nothing is.
    """
    fold_N, pool_N = np.array(folds), np.array(pools)
    prior_N = np.full(len(probability_N), 0.5)
    for fold, pool in set(zip(folds, pools, strict=True)):
        asked_N = (fold_N == fold) & (pool_N == pool)
        graded_N = (fold_N != fold) & (count_N > 0)
        known_N = graded_N & (pool_N == pool)
        if known_N.any():
            fitted = IsotonicRegression(y_min=_LEAST, y_max=1 - _LEAST, out_of_bounds="clip")
            means = sum_N[known_N] / count_N[known_N]
            fitted.fit(probability_N[known_N], means, sample_weight=count_N[known_N])
            prior_N[asked_N] = fitted.predict(probability_N[asked_N])
        elif graded_N.any():
            mean = sum_N[graded_N].sum() / count_N[graded_N].sum()
            prior_N[asked_N] = np.clip(mean, _LEAST, 1 - _LEAST)
    return prior_N


def prior_weight(
    prior_N: Float[np.ndarray, "questions"],
    sum_N: Float[np.ndarray, "questions"],
    count_N: Int[np.ndarray, "questions"],
) -> float:
    """Return how many samples the priors are worth: from one half to 128.

    The weight w at which a beta distribution of w * prior and w * (1 - prior) makes the samples
    likeliest (the beta-binomial marginal likelihood, Skellam 1948); a grade in between counts as
    that part of a success. One sample a question says nothing of it: then 4, which is what few
    questions are drawn to.
    """
    weight_W = 2.0**_LOG_WEIGHTS
    a_WN = weight_W[:, None] * prior_N
    b_WN = weight_W[:, None] * (1 - prior_N)
    gain_WN = betaln(a_WN + sum_N, b_WN + count_N - sum_N) - betaln(a_WN, b_WN)
    belief_W = -0.5 * ((_LOG_WEIGHTS - _LOG_MEAN) / _LOG_DEVIATION) ** 2
    return float(weight_W[(gain_WN.sum(axis=1) + belief_W).argmax()])
