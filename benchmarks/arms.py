"""What an ablation changes that no flag changes: the anchor and the targets of the warm start."""

import numpy as np
from scipy.special import betaln

from grpo_ao.cli import main as command_line
from grpo_ao.training import fine_tuning, warm_start
from grpo_ao.training.targets import expected_grades, pools_of


def train_arm(name: str, jobs: int, arguments: list[str]) -> None:
    """Train as ``train.py`` does, with what an arm changes beside its flags.

    ``jobs`` runs share the device: each takes its part of what a pass of the warm start may fill.
    """
    fine_tuning.MOST_TOKENS //= jobs
    if name == "no anchor":
        fine_tuning.ANCHOR_WEIGHT = 0.0
    if name == "answer probability alone":
        warm_start.FIRST_SHARE = 1.0
    if name == "targets of the family":
        warm_start.expected_grades = family_means
    if name == "targets of the samples":
        warm_start.expected_grades = posterior_means
    command_line(["train", *arguments])


def family_means(probes, probability_N, sum_N, count_N, wrong=()):
    """Return each question's mean grade, shrunk to its family's by two samples."""
    family_N = np.array([probe.family for probe in probes])
    mean_N = np.empty(len(probes))
    for family in set(family_N.tolist()):
        inside = family_N == family
        mean = sum_N[inside].sum() / max(1, count_N[inside].sum())
        mean_N[inside] = (sum_N[inside] + 2.0 * mean) / (count_N[inside] + 2.0)
    return mean_N


# Weights of a prior, in samples, as powers of two, and what is believed of them beforehand: about
# 4 samples, a factor of 4 either way.
_LOG_WEIGHTS = np.arange(-1, 7.25, 0.25)
_LOG_MEAN, _LOG_DEVIATION = 2.0, 2.0


def posterior_means(probes, probability_N, sum_N, count_N, wrong=()):
    """Return what is taught by default as the mean of a beta prior, updated by the samples.

    How much the prior weighs is estimated from each pool's grades.
    """
    prior_N = expected_grades(probes, probability_N, sum_N, count_N, wrong)
    mean_N = np.empty(len(probes))
    pools = pools_of(probes, wrong)
    for pool in set(pools):
        of_pool = np.array([name == pool for name in pools])
        prior, total, count = prior_N[of_pool], sum_N[of_pool], count_N[of_pool]
        weight = prior_weight(prior, total, count)
        mean_N[of_pool] = (total + weight * prior) / (count + weight)
    return mean_N


def prior_weight(prior_N: np.ndarray, sum_N: np.ndarray, count_N: np.ndarray) -> float:
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
