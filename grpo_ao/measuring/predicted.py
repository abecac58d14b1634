"""Confidences that are predicted without asking the oracle: a stated one has to be better.

Whether an answer is right can be predicted from the family of its question, from the question's
words, or from the activations by a linear probe. Words and activations predict by what is fitted
on other texts than those whose answers are predicted (five folds, by hash of the text); a family's
mean is that of the same answers, and so the best that could be said of the family alone.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from grpo_ao.answer import Answer
from grpo_ao.calibration import out_of_fold
from grpo_ao.probe import fold_of

_LEAST, _MOST = 0.005, 0.995

Predictions = Float[np.ndarray, "answers"]


def predicted_confidences(
    answers: Sequence[Answer], vectors: Sequence[Tensor]
) -> dict[str, Predictions]:
    """Return each predictor's confidences in the answers, by name; NaN where there is no grade.

    ``vectors[n]`` (K, D) are the activations that answer n was read from.
    """
    families = [f"{answer.probe.family}/{answer.probe.kind}" for answer in answers]
    return {
        "family and kind": family_means(outcomes_of(answers), families),
        "question's words": from_words(answers),
        "linear probe": from_activations(answers, vectors, [""] * len(answers)),
        "linear probe, one a family": from_activations(answers, vectors, families),
    }


def outcomes_of(answers: Sequence[Answer]) -> Float[np.ndarray, "answers"]:
    """Return the answers' grades, NaN where there is none."""
    return np.array([answer.informativeness for answer in answers], dtype=float)


def family_means(outcome_N: Float[np.ndarray, "answers"], families: Sequence[str]) -> Predictions:
    """Return the mean outcome of each answer's family.

    On the same items, so that it is calibrated by construction, and equal within a family.
    """
    family_N, mean_N = np.array(families), np.full(len(families), np.nan)
    for family in set(families):
        inside_N = (family_N == family) & ~np.isnan(outcome_N)
        mean_N[inside_N] = outcome_N[inside_N].mean() if inside_N.any() else np.nan
    return mean_N


def from_words(answers: Sequence[Answer]) -> Predictions:
    """Predict outcomes from a question's words and pairs of words, by logistic regression."""

    def model() -> Pipeline:
        counts = CountVectorizer(binary=True, ngram_range=(1, 2), token_pattern=r"\w+")
        return make_pipeline(counts, LogisticRegression(max_iter=300))

    questions = np.array([answer.probe.question for answer in answers], dtype=object)
    return _cross_fitted(model, questions, answers, [""] * len(answers))


def from_activations(
    answers: Sequence[Answer], vectors: Sequence[Tensor], groups: Sequence[str]
) -> Predictions:
    """Predict outcomes from the mean of the activations, by logistic regression.

    One model for each group and the layers read. Features are standardised, and weights have a
    prior of variance 1/D, so that the log odds of an answer have a variance of about 1 beforehand.
    """
    mean_ND = np.stack([row_KD.float().mean(dim=0).numpy() for row_KD in vectors])

    def model() -> Pipeline:
        regression = LogisticRegression(C=1 / mean_ND.shape[1], max_iter=300)
        return make_pipeline(StandardScaler(), regression)

    parts = [f"{g} {a.probe.shown_layers}" for g, a in zip(groups, answers, strict=True)]
    return _cross_fitted(model, mean_ND, answers, parts)


def _cross_fitted(
    model: Callable[[], Pipeline],
    feature_N: np.ndarray,
    answers: Sequence[Answer],
    parts: Sequence[str],
) -> Predictions:
    """Predict each part's outcomes, each fold by what is fitted on the others."""
    outcome_N = outcomes_of(answers)
    graded = np.flatnonzero(~np.isnan(outcome_N))
    fold_N = np.array([fold_of(answer.probe.text) for answer in answers], dtype=int)

    def predict(known: np.ndarray, asked: np.ndarray) -> np.ndarray | float:
        known, asked = graded[known], graded[asked]
        return _predicted(model(), feature_N[known], outcome_N[known], feature_N[asked])

    predicted_N = np.full(len(answers), np.nan)
    predicted_N[graded] = out_of_fold(predict, fold_N[graded], np.array(parts)[graded])
    return predicted_N


def _predicted(
    model: Pipeline, feature_N: np.ndarray, outcome_N: np.ndarray, asked_N: np.ndarray
) -> np.ndarray | float:
    """Fit the model and predict.

    Where all known answers are right, or all are wrong, predict their mean; one half if there are
    none.
    """
    # A grade in between is so much of a right answer, and the rest of a wrong one.
    rows = np.concatenate([np.flatnonzero(outcome_N > 0), np.flatnonzero(outcome_N < 1)])
    right = np.arange(len(rows)) < (outcome_N > 0).sum()
    if right.all() or not right.any():
        return outcome_N.mean() if len(outcome_N) else 0.5
    weight = np.where(right, outcome_N[rows], 1 - outcome_N[rows])
    last = model.steps[-1][0]
    model.fit(feature_N[rows], right, **{f"{last}__sample_weight": weight})
    return np.clip(model.predict_proba(asked_N)[:, 1], _LEAST, _MOST)
