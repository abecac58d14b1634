"""The numbers that a run is judged by: before, after and their difference, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grpo_ao.answer import Answer
from grpo_ao.measuring.metrics import Columns, Measurement, measure, measure_difference
from grpo_ao.report.run_record import MODES, WHEN, RunRecord

DRAWS = 500
# Which measurement less which.
CHANGES = {"change": ("after", "before"), "change by GRPO": ("after", "warm start")}
# What a run's tables show of each measurement.
METRICS = (
    *("auroc_within", "calibration_error", "brier_all", "ece10", "auroc", "somers_d"),
    *("risk_at_80", "aurc", "brier", "informativeness", "brier_isotonic"),
    *("confidence_mean", "confidence_std", "parse_rate"),
)


@dataclass(frozen=True)
class Headline:
    """The held-out measurements of a run, and how much they were measured on.

    ``modes`` has for each mode its measurements and their changes, by name; ``perfect_ece`` is the
    95 % interval of the ECE of a perfect forecaster that states the confidences of the last sampled
    measurement.
    """

    modes: dict[str, dict[str, Measurement]]
    probes: int
    texts: int
    perfect_ece: tuple[float, float]

    @property
    def compared(self) -> bool:
        """Whether there is a measurement before and one after training."""
        return any("change" in found for found in self.modes.values())

    @property
    def measured(self) -> str:
        """The last measurement: ``before``, ``warm start`` or ``after``."""
        return [when for when in WHEN if any(when in found for found in self.modes.values())][-1]


def headline_of(record: RunRecord, draws: int = DRAWS) -> Headline | None:
    """Compare a run's held-out measurements; None before the first."""
    if not record.heldout:
        return None
    modes = {}
    for mode in MODES:
        if measured := record.of_mode(mode):
            modes[mode] = compared(measured, draws)
    mode, found = next(iter(modes.items()))
    when = [when for when in WHEN if when in found][-1]
    perfect, last = found[when]["ece10_perfect"], record.heldout[f"{when} {mode}"]
    texts = {answer.probe.text for answer in last}
    return Headline(modes, len(last), len(texts), (perfect["low"], perfect["high"]))


def compared(
    measured: Mapping[str, Sequence[Answer]], draws: int = DRAWS
) -> dict[str, Measurement]:
    """Measure the same probes' answers, and the changes between them.

    Intervals are 95 % percentile intervals by bootstrap over texts: a text's questions are drawn
    together, and both measurements with the same texts, so that the difference is a paired one.
    """
    if len({tuple(a.probe.id for a in answers) for answers in measured.values()}) > 1:
        raise ValueError("the measurements are not of the same probes.")
    columns = {when: Columns.of(answers) for when, answers in measured.items()}
    found = {when: measure(part, draws) for when, part in columns.items()}
    for change, (last, first) in CHANGES.items():
        if last in columns and first in columns:
            found[change] = measure_difference(columns[last], columns[first], draws)
    return found
