"""The reading test: does an oracle's confidence follow what it reads, or the question alone?

The same questions are asked of other activations, where an oracle can only guess. One that reads
its activations is right less often there, and less confident; a confidence that stays high comes
from the question. Other sources of confidence in the same answers are measured beside it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from grpo_ao.answer import Answer
from grpo_ao.calibration import bootstrap_interval
from grpo_ao.measuring.confidences import METHODS
from grpo_ao.measuring.metrics import (
    Columns,
    by_kind,
    headline_values,
    measure,
    measure_difference,
)
from grpo_ao.wording import say_the_same

Control = Literal["same_family", "other_family", "noise", "question_alone"]
CONTROLS: dict[Control, str] = {
    "same_family": "another text of the same family",
    "other_family": "a text of another family",
    "noise": "noise of the same norms",
    "question_alone": "the question alone",
}
UNANSWERABLE = "another text of the same family, which cannot have the answer"
"""A part of the first control's questions (``only_of_their_text``)."""

# Confidence that exceeds accuracy on noise by more than this is an alert.
MOST_TOO_SURE = 0.1


class Reading(NamedTuple):
    """Answers to the same probes from the text's own activations, and from a control's."""

    own: list[Answer]
    other: list[Answer]


class Controlled(NamedTuple):
    """What was measured by asking an oracle again.

    ``readings`` are its answers from each control's activations; ``confidences`` other sources of
    confidence in each of its answers, by name, NaN where not measured; ``forced`` its answers where
    it had to choose among known ones; ``unanswerable`` the ids of the questions that no other text
    answers.
    """

    readings: Mapping[Control, Reading]
    confidences: Mapping[str, Float[np.ndarray, "answers"]]
    forced: Sequence[Answer] = ()
    unanswerable: Collection[str] = ()

    def of_kind(self, answers: Sequence[Answer], kind: str) -> "Controlled":
        """Return what concerns the questions of one kind; ``answers`` are the oracle's to all."""

        def part(given: Sequence[Answer]) -> list[Answer]:
            return [answer for answer in given if answer.probe.kind == kind]

        inside_N = np.array([answer.probe.kind == kind for answer in answers], dtype=bool)
        readings: dict[Control, Reading] = {}
        for control, (own, other) in self.readings.items():
            if own_part := part(own):
                readings[control] = Reading(own_part, part(other))
        return Controlled(
            readings,
            {name: values[inside_N] for name, values in self.confidences.items()},
            part(self.forced),
            self.unanswerable,
        )


def reading_metrics(controlled: Controlled, draws: int = 1000) -> dict[str, Any]:
    """Measure the answers from each control's activations, by the control's title.

    ``own`` are those from the text's own activations to the same probes, ``difference`` is other
    less own, paired. ``same_answer`` is the share of answers that stay the same. The questions that
    the other text cannot answer are measured for themselves, too.
    """
    readings = {CONTROLS[control]: reading for control, reading in controlled.readings.items()}
    pairs = [
        (own, other)
        for own, other in zip(*controlled.readings.get("same_family", ([], [])), strict=True)
        if own.probe.id in controlled.unanswerable
    ]
    if pairs:
        readings[UNANSWERABLE] = Reading(*map(list, zip(*pairs, strict=True)))
    return {
        title: {
            "own": measure(Columns.of(own), draws),
            "other": measure(Columns.of(other), draws),
            "difference": measure_difference(
                Columns.of(other), Columns.of(own), draws, values=headline_values
            ),
            "same_answer": _same_answers(own, other, draws),
        }
        for title, (own, other) in readings.items()
    }


def _same_answers(own: Sequence[Answer], other: Sequence[Answer], draws: int) -> dict[str, float]:
    pairs = zip(own, other, strict=True)
    same_N = np.array([say_the_same(a.answer, b.answer, a.probe.kind) for a, b in pairs], float)
    text_N = np.array([answer.probe.text_key for answer in own])
    low, high = bootstrap_interval(lambda rows_N: same_N[rows_N].mean(), text_N, draws=draws)
    return {"value": same_N.mean(), "low": low, "high": high}


def against_stated(
    answers: Sequence[Answer],
    confidences: Mapping[str, Float[np.ndarray, "answers"]],
    draws: int = 500,
) -> dict[str, Any]:
    """Compare other sources of confidence in the answers with the stated one.

    Each is source less stated, paired, on the answers of which both are known.
    """
    stated, found = Columns.of(answers), {}
    methods = {name: Columns.of(answers, method) for name, method in METHODS.items()}
    del methods["stated confidence"]
    others = {n: replace(stated, confidence_N=values) for n, values in confidences.items()}
    for name, columns in (methods | others).items():
        rows = np.flatnonzero(columns.is_known & stated.is_known)
        if len(rows):
            pair = columns.take(rows), stated.take(rows)
            found[name] = measure_difference(*pair, draws, values=headline_values)
    return found


def reading_alerts(others: Mapping[str, Sequence[Answer]]) -> list[str]:
    """Say for which kind of question the oracle is far more confident about noise than it is right.

    ``others`` are its answers from each control's activations, by the control's title.
    """
    alerts = []
    for kind, answers in by_kind(others.get(CONTROLS["noise"], [])).items():
        values = headline_values(Columns.of(answers))
        sure, right = values["confidence_mean"], values["informativeness"]
        if sure - right > MOST_TOO_SURE:  # NaN is not
            alerts.append(
                f"On {kind} questions about noise in place of activations it is right {right:.0%} "
                f"of the time and says {sure:.0%}: its confidence does not follow what it reads."
            )
    return alerts
