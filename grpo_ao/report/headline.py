"""The numbers that a run is judged by: before, after and their difference, with intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from grpo_ao.answer import Answer
from grpo_ao.measuring.metrics import (
    SUMMARY,
    Columns,
    Measurement,
    by_kind,
    difference,
    measurement,
    resample,
)
from grpo_ao.measuring.reading import against_stated
from grpo_ao.report.findings import changed, findings, rivals
from grpo_ao.report.run_record import MODES, WHEN, RunRecord

DRAWS = 500
# Which measurement less which.
CHANGES = {
    "change": ("after", "before"),
    "change by the warm start": ("warm start", "before"),
    "change by GRPO": ("after", "warm start"),
}
# What a run's tables show of each measurement.
METRICS = (
    *("auroc_within", "calibration_error", "brier_all", "ece10", "auroc", "somers_d"),
    *("risk_at_80", "aurc", "brier", "informativeness", "brier_isotonic"),
    *("confidence_mean", "confidence_std", "parse_rate"),
)
Compared = dict[str, Measurement]
"""Measurements of the same probes, and the changes between them, by name."""


@dataclass(frozen=True)
class Headline:
    """The held-out measurements of a run, and the number of their probes and texts.

    ``modes`` has for each mode, and each kind of question, what was measured and what changed.
    Of the greedy answers there are sentences: ``findings`` on the last ones, ``changes`` on what
    training changed, ``rivals`` on other sources of confidence in them.
    """

    modes: dict[str, dict[str, Compared]]
    probes: int
    texts: int
    findings: Sequence[str] = ()
    changes: Sequence[str] = ()
    rivals: Sequence[str] = ()

    @property
    def sentences(self) -> list[str]:
        """Everything that is said of the greedy answers."""
        return [*self.findings, *self.changes, *self.rivals]

    @property
    def values(self) -> dict[str, float]:
        """The metrics that a run is judged by, as far as they are defined, for its loggers."""
        found = {
            f"heldout/{kind}/{mode}/{when}/{name}": of[name]["value"]
            for mode, kinds in self.modes.items()
            for kind, measured in kinds.items()
            for when, of in measured.items()
            for name in SUMMARY
            if when in WHEN
        }
        return {name: value for name, value in found.items() if math.isfinite(value)}

    @property
    def compared(self) -> bool:
        """Whether there is a measurement before and one after training."""
        return any("change" in found for kinds in self.modes.values() for found in kinds.values())

    @property
    def measured(self) -> str:
        """The last measurement: ``before``, ``warm start`` or ``after``."""
        found = {when for kinds in self.modes.values() for of in kinds.values() for when in of}
        return [when for when in WHEN if when in found][-1]


def headline_of(record: RunRecord, draws: int = DRAWS) -> Headline | None:
    """Compare a run's held-out measurements; None before the first."""
    if not record.heldout:
        return None
    measured = {mode: record.of_mode(mode) for mode in MODES}
    modes = {mode: compared(of, draws) for mode, of in measured.items() if of}
    answers = next(iter(record.heldout.values()))
    headline = Headline(modes, len(answers), len({answer.probe.text_key for answer in answers}))
    if not measured["greedy"]:
        return headline
    (when, last), kinds = list(measured["greedy"].items())[-1], modes["greedy"]
    return replace(
        headline,
        findings=findings({k: found[when] for k, found in kinds.items()}, last, record.controls),
        changes=_changes(kinds),
        rivals=[
            sentence
            for kind, part in by_kind(last).items()
            for sentence in rivals(kind, against_stated(part, {}, draws))
        ],
    )


def compared(measured: Mapping[str, Sequence[Answer]], draws: int = DRAWS) -> dict[str, Compared]:
    """Measure the same probes' answers, and the changes between them, each kind of question apart.

    Intervals are 95 % percentile intervals by bootstrap over texts: a text's questions are drawn
    together, and both measurements with the same texts, so that the difference is a paired one.
    """
    if len({tuple(a.probe.id for a in answers) for answers in measured.values()}) > 1:
        raise ValueError("the measurements are not of the same probes.")
    kinds = {when: by_kind(answers) for when, answers in measured.items()}
    return {
        kind: _compared({when: of[kind] for when, of in kinds.items()}, draws)
        for kind in next(iter(kinds.values()))
    }


def _compared(measured: Mapping[str, Sequence[Answer]], draws: int) -> Compared:
    columns = {when: Columns.of(answers) for when, answers in measured.items()}
    drawn = {when: resample(part, draws) for when, part in columns.items()}
    found = {when: measurement(part, drawn[when]) for when, part in columns.items()}
    for change, (last, first) in CHANGES.items():
        if last in columns and first in columns:
            found[change] = difference(columns[last], drawn[last], drawn[first])
    return found


def _changes(kinds: Mapping[str, Compared]) -> list[str]:
    """Return the sentences on what each part of training changed, for each kind of question."""
    names = {of: change for change, of in CHANGES.items()}
    return [
        changed(kind, last, first, found[names[last, first]])
        for kind, found in kinds.items()
        for first, last in pairwise(when for when in WHEN if when in found)
    ]
