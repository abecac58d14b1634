"""The number that a warm start teaches: how likely it is that the oracle's answer is right.

One graded answer says little of a question, and the mean of its family says nothing of the
question itself. The probability that the oracle gives to its own answer does. So the number is that
probability, recalibrated on other texts. The question's own grade does not enter its number:
whether an answer was right is more than the activations tell, so that a number which follows it
cannot be learned but as a mixture, of which an oracle then states the larger part.

The answer is the greedy one, which the oracle gives when it is asked. One that is drawn at
temperature 1 is right less often, and the number in front cannot know which one will be drawn.
"""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from grpo_ao.calibration import out_of_fold
from grpo_ao.probe import Probe, fold_of

# A family of fewer questions is pooled with the others of its kind, open or closed.
ENOUGH = 200
# No question is taught to be hopeless or certain.
_LEAST = 0.01
# A long answer may be improbable by far; that a short one is certain, to many digits, says little.
_LEAST_PROBABILITY, _MOST_PROBABILITY = 1e-12, 1 - 1e-4


def expected_grades(
    probes: Sequence[Probe],
    probability_N: Float[np.ndarray, "questions"],
    grade_N: Float[np.ndarray, "questions"],
    wrong: Collection[int] = (),
) -> Float[np.ndarray, "questions"]:
    """Return the expected grade of the answer to each question, between 0 and 1.

    ``probability_N`` is the oracle's probability of its answer, or the number that it expects to
    write, recalibrated on a question's family where that has ``ENOUGH`` questions, on its kind
    else. ``grade_N`` are the answers' grades, NaN where there is none. The questions ``wrong``, by
    their place, were asked on wrong activations: they are apart.
    """
    folds = [fold_of(probe.text) for probe in probes]
    return cross_fitted(probability_N, grade_N, pools_of(probes, wrong), folds)


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
    grade_N: Float[np.ndarray, "questions"],
    pools: Sequence[str],
    folds: Sequence[int],
) -> Float[np.ndarray, "questions"]:
    """Map each probability to the mean grade that such ones have in the pool's other folds.

    A logistic fit to the log odds (Platt 1999), which keeps the questions of a pool in order.
    Questions whose pool has nothing graded in other folds get the mean of all that is graded
    elsewhere, and one half where nothing is.
    """
    fold_N, graded_N = np.array(folds), ~np.isnan(grade_N)
    odds_N = logit(np.clip(probability_N, _LEAST_PROBABILITY, _MOST_PROBABILITY))

    def predict(known: np.ndarray, asked: np.ndarray) -> np.ndarray | float:
        own = known[graded_N[known]]
        elsewhere = np.flatnonzero((fold_N != fold_N[asked[0]]) & graded_N)
        if not len(elsewhere):
            return 0.5
        right = grade_N[own if len(own) else elsewhere]
        if not (len(own) and right.any() and (right < 1).any()):
            return right.mean()
        fitted = LogisticRegression().fit(
            np.tile(odds_N[own], 2)[:, None],
            np.repeat([1, 0], len(own)),
            sample_weight=np.concatenate([right, 1 - right]),
        )
        return fitted.predict_proba(odds_N[asked, None])[:, 1]

    return np.clip(out_of_fold(predict, fold_N, np.array(pools)), _LEAST, 1 - _LEAST)
