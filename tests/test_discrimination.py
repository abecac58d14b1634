import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import somersd

from grpo_ao.calibration import auroc, ece
from grpo_ao.discrimination import risk_at_coverage, somers_d, within_family_auroc

pytestmark = pytest.mark.filterwarnings("error")


def floats(*values):
    return np.array(values, dtype=float)


graded = st.lists(
    st.tuples(st.integers(0, 20), st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1, max_size=40
)


def columns(items):
    return floats(*[c / 20 for c, _ in items]), floats(*[o for _, o in items])


# Within families


def test_within_family_auroc_by_hand():
    # "a" has two pairs, right .9 over .5 and under .95: one of two. "b" has one pair, ordered.
    confidence = floats(0.9, 0.5, 0.95, 0.3, 0.2)
    right = np.array([True, False, False, True, False])
    found = within_family_auroc(confidence, right, np.array(["a", "a", "a", "b", "b"]))
    assert found.auroc == pytest.approx(2 / 3)
    assert (found.families, found.left_out) == (2, 0)


def test_a_family_with_one_outcome_is_left_out_and_counted():
    confidence, right = floats(0.9, 0.1, 0.5, 0.6), np.array([True, False, True, True])
    found = within_family_auroc(confidence, right, np.array(["a", "a", "b", "b"]))
    assert found == (1.0, 1, 1)


def test_families_with_one_outcome_each_have_no_auroc():
    found = within_family_auroc(
        floats(0.9, 0.1), np.array([True, False]), np.array(["known", "unknown"])
    )
    assert math.isnan(found.auroc)
    assert (found.families, found.left_out) == (0, 2)
    nothing = within_family_auroc(floats(), np.array([], dtype=bool), np.array([]))
    assert math.isnan(nothing.auroc)


@given(graded)
def test_within_one_family_it_is_auroc(items):
    confidence, grade = columns(items)
    found = within_family_auroc(confidence, grade >= 0.5, np.zeros(len(items)))
    assert found.auroc == pytest.approx(auroc(confidence, grade >= 0.5), nan_ok=True)


def test_a_confidence_that_is_the_familys_base_rate_looks_good_everywhere_but_within_families():
    # Five families of 100, right in .55 to .95 of the cases; what is stated is just that.
    family = np.repeat(np.arange(5), 100)
    confidence = 0.55 + 0.1 * family
    within = np.tile(np.arange(100), 5)
    right = within < np.round(100 * confidence)
    assert ece(confidence, right.astype(float)) == pytest.approx(0.0, abs=1e-9)
    assert auroc(confidence, right) > 0.65
    assert within_family_auroc(confidence, right, family).auroc == 0.5


# Grades


def test_somers_d_by_hand():
    # Of the pairs whose grades differ four are ordered and one, of confidences .4 and .4, is tied.
    grade, confidence = floats(0, 0, 1, 0.5), floats(0.1, 0.4, 0.8, 0.4)
    assert somers_d(confidence, grade) == pytest.approx(4 / 5)
    assert somers_d(1 - confidence, grade) == pytest.approx(-4 / 5)


@given(graded)
def test_somers_d_is_scipys_and_auroc_where_grades_are_0_and_1(items):
    confidence, grade = columns(items)
    if len(set(grade.tolist())) > 1:
        expected = somersd(grade, confidence).statistic if len(set(confidence.tolist())) > 1 else 0
        assert somers_d(confidence, grade) == pytest.approx(expected)
    else:
        assert math.isnan(somers_d(confidence, grade))
    closed = (grade >= 0.5).astype(float)
    area = 2 * auroc(confidence, closed == 1) - 1
    assert somers_d(confidence, closed) == pytest.approx(area, nan_ok=True)


def test_no_grades_have_no_concordance():
    assert math.isnan(somers_d(floats(), floats()))


# Silence


def test_risk_at_coverage_by_hand():
    confidence, outcome = floats(0.9, 0.8, 0.7, 0.6, 0.1), floats(1, 0, 1, 1, 0)
    assert risk_at_coverage(confidence, outcome) == pytest.approx(1 / 4)
    assert risk_at_coverage(confidence, outcome, 0.2) == 0.0
    # .5 of five answers are three of them.
    assert risk_at_coverage(confidence, outcome, 0.5) == pytest.approx(1 / 3)
    assert risk_at_coverage(confidence, outcome, 1.0) == pytest.approx(2 / 5)
    assert math.isnan(risk_at_coverage(floats(), floats()))


def test_equal_confidences_are_left_unsaid_at_random():
    assert risk_at_coverage(np.full(10, 0.7), floats(*[1] * 7, *[0] * 3)) == pytest.approx(0.3)
