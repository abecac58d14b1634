"""Telling right answers from wrong ones: pure functions of confidences and outcomes.

A confidence can be calibrated, and even tell right from wrong over all questions, without any look
at the text: it is enough to know which questions are easy. Within a family of questions that helps
no longer. A metric of no pairs is NaN.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from grpo_ao.calibration import risk_coverage

Array = Float[np.ndarray, "items"]


class WithinFamily(NamedTuple):
    """AUROC within families: ``left_out`` of them have one outcome alone, and so no pairs."""

    auroc: float
    families: int
    left_out: int


def within_family_auroc(
    confidence_N: Array, positive_N: Bool[np.ndarray, "items"], family_N: np.ndarray
) -> WithinFamily:
    """Chance that of two answers of one family the right one has the higher confidence.

    The mean of the families' AUROCs, each weighted by its pairs of a right and a wrong answer.
    A confidence that is a function of the family alone has .5.
    """
    names, family_N = np.unique(family_N, return_inverse=True)
    # Equal confidences of a family are one cell; cells are in the order of family and confidence.
    order_N = np.lexsort((confidence_N, family_N))
    family_N, sorted_N, right_N = family_N[order_N], confidence_N[order_N], positive_N[order_N]
    starts_N = np.ones(len(order_N), dtype=bool)
    starts_N[1:] = (np.diff(family_N) != 0) | (np.diff(sorted_N) != 0)
    cell_N = np.cumsum(starts_N) - 1
    right_C = np.bincount(cell_N, weights=right_N)
    wrong_C = np.bincount(cell_N, weights=~right_N)
    family_C = family_N[starts_N]
    right_F, wrong_F = (np.bincount(family_C, w, len(names)) for w in (right_C, wrong_C))
    # Wrong answers of the same family with less confidence, and half of those with the same.
    before_F = np.cumsum(wrong_F) - wrong_F
    below_C = np.cumsum(wrong_C) - wrong_C / 2 - before_F[family_C]
    pairs_F = right_F * wrong_F
    pairs, left_out = pairs_F.sum(), int((pairs_F == 0).sum())
    value = float(right_C @ below_C / pairs) if pairs else float("nan")
    return WithinFamily(value, len(names) - left_out, left_out)


def somers_d(confidence_N: Array, grade_N: Array) -> float:
    """Concordant less discordant pairs, as a share of the pairs whose grades differ.

    Somers' D of confidence with respect to the grade (Somers 1962): 1 if confidence rises with the
    grade throughout, 0 if it knows nothing; ``2 * auroc - 1`` where grades are 0 and 1.
    """
    if not len(grade_N):
        return float("nan")
    grades, row_N = np.unique(grade_N, return_inverse=True)
    levels, column_N = np.unique(confidence_N, return_inverse=True)
    cells = np.bincount(row_N * len(levels) + column_N, minlength=len(grades) * len(levels))
    count_GL = cells.reshape(len(grades), len(levels)).astype(float)
    # In each column: the items of lower grade there, and in the columns to the left.
    lower_GL = np.cumsum(count_GL, axis=0) - count_GL
    below_GL = np.cumsum(lower_GL, axis=1) - lower_GL
    above_GL = lower_GL.sum(axis=1, keepdims=True) - below_GL - lower_GL
    pairs = float((count_GL * lower_GL.sum(axis=1, keepdims=True)).sum())
    return float((count_GL * (below_GL - above_GL)).sum()) / pairs if pairs else float("nan")


def risk_at_coverage(confidence_N: Array, outcome_N: Array, coverage: float = 0.8) -> float:
    """Mean of 1 - outcome over the most confident share of the answers, rounded up to a whole one.

    What goes wrong if the oracle is silent about the rest (Geifman, El-Yaniv, arXiv 1705.08500);
    equal confidences as in ``risk_coverage``.
    """
    if not len(confidence_N):
        return float("nan")
    given = math.ceil(coverage * len(confidence_N) - 1e-9)
    return float(risk_coverage(confidence_N, outcome_N)[1][max(given, 1) - 1])
