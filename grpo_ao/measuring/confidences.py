"""Baselines: other sources of confidence, with which the stated one is compared.

All are confidences in the same greedy answers, and so have the same outcomes: the probability of
the answer's Yes against No or of No against Yes, the probability of the whole answer, the share of
sampled answers that agree with it, the base rate, and each of these recalibrated on the other half
of the texts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter

import numpy as np
from jaxtyping import Float

from grpo_ao.answer import Answer
from grpo_ao.calibration import Fit, fit_isotonic, fit_temperature, out_of_fold
from grpo_ao.measuring.metrics import STATED, Columns, Confidence
from grpo_ao.probe import unit_draw
from grpo_ao.wording import yes_or_no

AGREEMENT_SAMPLES = 20


def token_probability(answer: Answer) -> float | None:
    """Return the probability of the answer's word against the other's."""
    word = yes_or_no(answer.answer)
    if word is None or answer.yes_probability is None:
        return None
    return answer.yes_probability if word == "Yes" else 1 - answer.yes_probability


def agreement(answer: Answer) -> float | None:
    """Return the share of sampled answers that say what the greedy one says."""
    return None if answer.agreement is None else answer.agreement.share


_AGREEMENT = f"agreement of {AGREEMENT_SAMPLES}"
METHODS: dict[str, Confidence] = {
    "stated confidence": STATED,
    "token probability": token_probability,
    "answer probability": attrgetter("answer_probability"),
    _AGREEMENT: agreement,
}


def baselines(
    answers: Sequence[Answer], others: Mapping[str, Float[np.ndarray, "answers"]] | None = None
) -> dict[str, Columns]:
    """Return each method's columns, recalibrated ones and the constant among them.

    A recalibration is fitted on one half of the texts and applied to the other, both ways, so that
    every answer has a recalibrated confidence. A method of which too little is known for a fit has
    none. Where agreement was measured on some answers, it is compared with the stated confidence
    on those. ``others`` are further confidences by name, NaN where they were not measured.
    """
    every = Columns.of(answers)
    found = {name: Columns.of(answers, method) for name, method in METHODS.items()}
    sampled = [answer for answer in answers if answer.agreement is not None]
    if 0 < len(sampled) < len(answers):
        found[_AGREEMENT] = Columns.of(sampled, agreement)
        found["stated confidence, where agreement is known"] = Columns.of(sampled)
    found = {name: columns for name, columns in found.items() if len(columns.known[0])}
    fitted = {"constant": cross_recalibrated(_fit_constant, Columns.of(answers, lambda _: 0.5))}
    for name, columns in found.items():
        fitted[f"{name} + isotonic"] = cross_recalibrated(fit_isotonic, columns)
        fitted[f"{name} + temperature"] = cross_recalibrated(fit_temperature, columns)
    found |= {name: columns for name, columns in fitted.items() if columns is not None}
    for name, confidence_N in (others or {}).items():
        columns = replace(every, confidence_N=confidence_N)
        found[name] = columns.only_known()
    return found


def cross_recalibrated(fit: Fit, columns: Columns) -> Columns | None:
    """Recalibrate each half of the texts by a fit on the other; None if one half has no answers.

    Halves are drawn by a hash of the text, and so are the same for all methods.
    """
    known_N = columns.is_known
    second_N = np.array([unit_draw("half", str(text)) < 0.5 for text in columns.context_N], bool)
    if not (known_N & second_N).any() or not (known_N & ~second_N).any():
        return None
    own, outcome = columns.known

    def recalibrated(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
        return fit(own[known], outcome[known])(own[asked])

    confidence_N = columns.confidence_N.copy()
    one_part = np.zeros(len(own))
    confidence_N[known_N] = out_of_fold(recalibrated, second_N[known_N], one_part)
    return replace(columns, confidence_N=confidence_N)


def _fit_constant(_: np.ndarray, outcome_N: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda new_N: np.full(len(new_N), outcome_N.mean())


def generated_tokens(answers: Sequence[Answer]) -> dict[str, float]:
    """Return what each method costs, in generated tokens an answer.

    Token and answer probability come with the answer.
    """
    one = float(np.mean([len(answer.token_ids) for answer in answers]))
    costs = {name: one for name, method in METHODS.items() if method is not agreement}
    samples = [answer.agreement.tokens for answer in answers if answer.agreement is not None]
    if samples:
        costs[_AGREEMENT] = one + float(np.mean(samples))
    return costs
