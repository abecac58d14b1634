"""The reading test: does an oracle's confidence follow what it reads, or the question alone?

The same questions are asked of other activations, where an oracle can only guess. One that reads
its activations is right less often there, and less confident; a confidence that stays high comes
from the question. Other sources of confidence in the same answers are measured beside it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from grpo_ao.answer import Answer
from grpo_ao.calibration import bootstrap_interval
from grpo_ao.judges.protocol import Judge
from grpo_ao.judges.reference import ReferenceJudge, named
from grpo_ao.measuring.ask import Asking, ask
from grpo_ao.measuring.confidences import METHODS
from grpo_ao.measuring.controls import (
    CONTROLS,
    UNANSWERABLE,
    Control,
    control_rows,
    control_table,
    only_of_their_text,
)
from grpo_ao.measuring.elicited import (
    choice_probabilities,
    expected_confidences,
    sureness,
    sureness_table,
    truth_table,
)
from grpo_ao.measuring.metrics import (
    Columns,
    by_kind,
    headline_values,
    measure,
    measure_difference,
)
from grpo_ao.measuring.predicted import predicted_confidences
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.processes import Processes
from grpo_ao.wording import say_the_same

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


@dataclass(frozen=True)
class Controls:
    """Asks an oracle again that gave ``answers`` to the probes of ``table``.

    ``count`` of the probes are asked, the same ones for every control. Answers are appended to
    ``path``, as in ``ask``, with the control's name beside ``label``.
    """

    oracle: Oracle
    table: ProbeTable
    answers: Sequence[Answer]
    judge: Judge
    how: Asking
    processes: Processes
    count: int
    path: Path
    label: Mapping[str, Any]
    progress: Callable[[int], None] = lambda _: None

    def controlled(self) -> Controlled:
        """Make every measurement that controls are for."""
        unanswerable = only_of_their_text(self.table.probes)
        return Controlled(self.readings(), self.confidences(), self.forced_choices(), unanswerable)

    def readings(self, controls: Sequence[Control] = tuple(CONTROLS)) -> dict[Control, Reading]:
        """Ask the same questions of each control's activations."""
        chosen, found = control_rows(self.table, self.count), {}
        for control in controls:
            rows, other = control_table(self.table, control, chosen)
            self.progress(len(chosen) - len(rows))
            given = self._ask(other, self.judge, self.how, control)
            found[control] = Reading([self.answers[row] for row in rows], given)
        return found

    def confidences(self) -> dict[str, Float[np.ndarray, "answers"]]:
        """Return other confidences in each answer, by their source.

        Each answer has predicted ones (``predicted``). Answers to the probes that are asked again
        have those that the oracle is asked for (``elicited``): *expected number*; *P(True)*, the
        probability of Yes to the question whether the answer is right; *in words*, what its words
        for how sure it is stand for; *forced choice*, the probability of the known answer that it
        gave, against the others.
        """
        rows, part, own = self._graded
        how = self.how._replace(probabilities=True)
        table = truth_table(self.oracle, part, own)
        replies = self._ask(table, ReferenceJudge(), how, "P(True)")
        sure_table = sureness_table(self.oracle, part, own)
        sure = self._ask(sure_table, ReferenceJudge(), self.how, "in words")
        elicited = {
            "expected number": expected_confidences(self.oracle, part),
            "P(True)": np.array([reply.yes_probability for reply in replies], dtype=float),
            "in words": sureness(self.oracle, sure_table, sure),
        }
        chosen = zip(own, self._chosen, strict=True)
        if any(self._chosen):
            elicited["forced choice"] = np.array(
                [likely.get(named(a.answer, list(likely)) or "", np.nan) for a, likely in chosen]
            )
        spread = {name: np.full(len(self.answers), np.nan) for name in elicited}
        for name, values in elicited.items():
            spread[name][rows] = values
        return predicted_confidences(self.answers, self.table.vectors) | spread

    def forced_choices(self) -> list[Answer]:
        """Return the likeliest known answer to each question that has some, graded.

        The confidence is its probability among the known answers.
        """
        found = []
        for answer, likely in zip(self._graded[2], self._chosen, strict=True):
            if likely:
                word = max(likely, key=likely.__getitem__)
                right = float(word == answer.probe.reference)
                found.append(
                    replace(answer, answer=word, confidence=likely[word], informativeness=right)
                )
        return found

    @cached_property
    def _graded(self) -> tuple[list[int], ProbeTable, list[Answer]]:
        rows = control_rows(self.table, self.count)
        rows = [row for row in rows if self.answers[row].informativeness is not None]
        return rows, self.table.part(rows), [self.answers[row] for row in rows]

    @cached_property
    def _chosen(self) -> list[dict[str, float]]:
        _, part, own = self._graded
        return choice_probabilities(self.oracle, part, own)

    def _ask(self, table: ProbeTable, judge: Judge, how: Asking, control: str) -> list[Answer]:
        label = {**self.label, "control": control}
        how = how._replace(agreement=0)
        return ask(self.oracle, table, judge, how, self.processes, self.path, label, self.progress)


# What it comes to


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
