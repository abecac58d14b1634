"""Confidences that are predicted: from families, from words, from activations."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from grpo_ao.answer import Answer
from grpo_ao.calibration import auroc
from grpo_ao.measuring.predicted import (
    family_means,
    from_activations,
    from_words,
    predicted_confidences,
)
from grpo_ao.probe import Positions, Probe

WIDTH = 16


def answer(n, grade, question="Is it?", family="a", layer=2):
    probe = Probe(f"text {n}", question, "closed", (layer,), Positions(3), "Yes", family)
    return replace(Answer.read(probe, "[epistemic status: 50] Yes"), informativeness=grade)


def activations(signs, seed=0, strength=2.0):
    """Vectors with one direction in common, along or against it."""
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(3, WIDTH, generator=generator) for _ in signs]
    return [row_KD + strength * sign * torch.eye(WIDTH)[0] for row_KD, sign in zip(noise, signs)]  # noqa: B905


def test_a_family_has_the_mean_of_its_grades():
    outcome_N = np.array([1, 0, 1, np.nan, 0.5])
    found = family_means(outcome_N, ["a", "a", "b", "b", "b"])
    assert found.tolist() == pytest.approx([0.5, 0.5, 0.75, np.nan, 0.75], nan_ok=True)


def test_words_that_decide_are_found_in_other_texts():
    rng = np.random.default_rng(0)
    grades = (rng.random(200) < 0.5).astype(float)
    given = [
        answer(n, grade, f"Is it {'easy' if grade else 'hard'} number {n}?")
        for n, grade in enumerate(grades)
    ]
    assert auroc(from_words(given), grades == 1) > 0.99


def test_what_is_noise_is_not_predicted_as_its_own_items_would_have_it():
    rng = np.random.default_rng(1)
    grades = (rng.random(300) < 0.5).astype(float)
    given = [answer(n, grade, f"Is it {n}?") for n, grade in enumerate(grades)]
    vectors = activations(np.zeros(300))
    assert abs(auroc(from_words(given), grades == 1) - 0.5) < 0.1
    assert abs(auroc(from_activations(given, vectors, [""] * 300), grades == 1) - 0.5) < 0.1


def test_a_direction_of_the_activations_is_found():
    grades = (np.arange(200) % 2).astype(float)
    given = [answer(n, grade) for n, grade in enumerate(grades)]
    found = from_activations(given, activations(2 * grades - 1), [""] * 200)
    assert auroc(found, grades == 1) > 0.98
    assert np.all((found > 0) & (found < 1))


def test_a_direction_that_turns_with_the_family_needs_a_probe_for_each():
    grades = (np.arange(400) % 2).astype(float)
    families = ["a" if n % 4 < 2 else "b" for n in range(400)]
    given = [answer(n, grade, family=f) for n, (grade, f) in enumerate(zip(grades, families))]  # noqa: B905
    turn = np.array([1 if family == "a" else -1 for family in families])
    found = predicted_confidences(given, activations((2 * grades - 1) * turn))
    assert auroc(found["linear probe"], grades == 1) < 0.65
    assert auroc(found["linear probe, one a family"], grades == 1) > 0.95


def test_grades_between_weigh_for_both_sides():
    signs = np.where(np.arange(400) % 2, 1, -1)
    given = [answer(n, 0.8 if sign > 0 else 0.3) for n, sign in enumerate(signs)]
    found = from_activations(given, activations(signs, strength=4.0), [""] * 400)
    assert found[signs > 0].mean() == pytest.approx(0.8, abs=0.05)
    assert found[signs < 0].mean() == pytest.approx(0.3, abs=0.05)


def test_what_cannot_be_fitted_is_the_mean_and_what_has_no_grade_is_nothing():
    given = [answer(n, 1.0) for n in range(20)] + [answer(20, None)]
    found = predicted_confidences(given, activations(np.zeros(21)))
    for values in found.values():
        assert np.isnan(values[-1])
        assert values[:-1].tolist() == pytest.approx([1.0] * 20, abs=0.01)
