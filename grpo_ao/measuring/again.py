"""Ask an oracle again: of other activations, and how sure it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from grpo_ao.answer import Answer
from grpo_ao.judges.protocol import Judge
from grpo_ao.judges.reference import ReferenceJudge, named
from grpo_ao.measuring.ask import Asking, ask
from grpo_ao.measuring.controls import control_rows, control_table, only_of_their_text
from grpo_ao.measuring.elicited import (
    choice_probabilities,
    expected_confidences,
    sureness,
    sureness_table,
    truth_table,
)
from grpo_ao.measuring.predicted import predicted_confidences
from grpo_ao.measuring.reading import CONTROLS, Control, Controlled, Reading
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.processes import Processes


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
