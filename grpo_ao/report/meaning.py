"""Does the number mean anything? What the report opens with, of the held-out greedy answers.

A confidence can be calibrated, and tell right answers from wrong ones over all questions, without
any look at the activations: it is enough to know which questions are easy. So closed and open
questions are kept apart here, and right answers are told from wrong ones of the same family.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import numpy as np
from markupsafe import Markup

from grpo_ao.answer import Answer
from grpo_ao.calibration import Estimate, auroc, bootstrap_interval
from grpo_ao.measuring.confidences import METHODS, generated_tokens
from grpo_ao.measuring.metrics import (
    Columns,
    Confidence,
    Measurement,
    auroc_by_family,
    headline_values,
    measure,
    parted,
    stated,
)
from grpo_ao.measuring.reading import reading_alerts
from grpo_ao.report.formats import TITLES, Table, number
from grpo_ao.report.plots import (
    Bin,
    Panel,
    estimates,
    gaps,
    inline_svg,
    reliability_diagram,
)

DRAWS = 200
# A family with fewer answers is not shown by itself.
_LEAST = 20
_MEASURED = ("auroc_within", "calibration_error", "brier_all", "informativeness")
OWN_TEXT = "its own text"
Measured = dict[str, Estimate]


@dataclass(frozen=True)
class Meaning:
    """The opening of the report; what a run has not measured is empty.

    ``measured`` names the measurements, ``verdicts`` are sentences. ``reliability`` holds a diagram
    by kind of question, ``families`` AUROC by family, ``course`` each measurement of the run,
    ``reading`` what other activations do, ``rivals`` other sources of confidence with their cost.
    """

    measured: list[str]
    verdicts: list[str]
    reliability: dict[str, Markup]
    families: Markup
    course: dict[str, Markup]
    reading: dict[str, Markup]
    rivals: dict[str, dict[str, Markup]]


def meaning(
    measured: Mapping[str, Sequence[Answer]],
    controls: Mapping[str, Sequence[Answer]],
    draws: int = DRAWS,
) -> Meaning | None:
    """Return the opening; None where no confidence is known yet.

    ``measured`` holds the greedy answers of each measurement (``before``), the last of which is
    judged, and ``controls`` the last oracle's answers where it read other activations.
    """
    stating = {when: answers for when, answers in measured.items() if len(known(answers))}
    if not stating:
        return None
    when, last = list(stating.items())[-1]
    kinds = _by_kind(last)
    found = {name: _found(answers, draws) for name, answers in stating.items()}
    return Meaning(
        measured=list(stating),
        verdicts=findings(found[when], last, controls),
        reliability={kind: _reliability(when, kind, answers) for kind, answers in kinds.items()},
        families=_families(stating, found, draws),
        course=_course(found),
        reading={kind: _reading(kind, when, last, controls) for kind in kinds if controls},
        rivals={kind: _rivals(kind, when, answers, draws) for kind, answers in kinds.items()},
    )


def _by_kind(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Return the answers to closed questions, then to open ones, where confidences are known."""
    kinds = parted(answers, lambda answer: answer.probe.kind)
    return {kind: kinds[kind] for kind in sorted(kinds) if len(known(kinds[kind]))}


def _found(answers: Sequence[Answer], draws: int) -> dict[str, Measured]:
    return {
        kind: measures(Columns.of(members), draws) for kind, members in _by_kind(answers).items()
    }


def known(answers: Sequence[Answer], confidence: Confidence = stated) -> Columns:
    """Return the columns of the answers of which confidence and informativeness are known."""
    columns = Columns.of(answers, confidence)
    return columns.take(np.flatnonzero(columns.is_known))


def measures(columns: Columns, draws: int) -> Measured:
    """Return what the report opens with, each with its 95 % interval over texts."""
    return estimated(measure(columns, draws))


def estimated(measured: Measurement) -> Measured:
    """Return those values of a measurement that the opening shows or speaks of."""
    return {name: Estimate(**measured[name]) for name in (*_MEASURED, "auroc")}


def findings(
    kinds: Mapping[str, Measured],
    answers: Sequence[Answer],
    controls: Mapping[str, Sequence[Answer]],
) -> list[str]:
    """Say what the stated confidence means, for each kind of question, and what it follows.

    ``kinds`` has what was measured of those ``answers`` whose kind's confidences are stated,
    ``controls`` the answers from other activations, by their title.
    """
    if not kinds:
        return [
            "No output states a confidence, so that only accuracy and other sources of confidence "
            "are known: train the oracle, or warm-start it, first."
        ]
    of_kind = parted(answers, lambda answer: answer.probe.kind)
    verdicts = [verdict(kind, found) + by_family(of_kind[kind]) for kind, found in kinds.items()]
    return [*verdicts, *reading_alerts(controls)]


def findings_of(
    measured: Mapping[str, Sequence[Answer]],
    controls: Mapping[str, Sequence[Answer]],
    draws: int = DRAWS,
) -> list[str]:
    """Return the findings of a run's last measurement, the arguments being those of ``meaning``."""
    if not measured:
        return []
    last = list(measured.values())[-1]
    return findings(_found(last, draws), last, controls)


def verdict(kind: str, found: Measured) -> str:
    """Say whether the number tells right answers from wrong ones; no interval, no claim."""
    within, pooled = found["auroc_within"], found["auroc"]
    if within.low > 0.5:
        claim = "is higher on right answers than on wrong ones of the same family"
    elif within.high < 0.5:
        claim = "is lower on right answers than on wrong ones of the same family"
    else:
        claim = "was not seen to tell right answers from wrong ones of the same family"
    sentence = (
        f"On {kind} questions the stated confidence {claim}: AUROC within families "
        f"{_written(within)}, where a number read from the question alone has 0.5."
    )
    if pooled.low > 0.5 and not within.low > 0.5:
        sentence += (
            f" The pooled AUROC, {_written(pooled)}, needs no more than knowing which families are "
            "easy."
        )
    return f"{sentence} Its calibration error is {_written(found['calibration_error'])}."


def by_family(answers: Sequence[Answer]) -> str:
    """Say in how many families of one kind the number tells right from wrong; nothing of one."""
    found = auroc_by_family(answers, _LEAST)
    if len(found) < 2:
        return ""
    sure = {family: told.value for family, told in found.items() if told.p < 0.05}
    above = [family for family, value in sure.items() if value > 0]
    below = [family for family, value in sure.items() if value < 0]
    sentence = f" Taken one by one, it is higher on right answers in {_counted(above, found)}"
    if below:
        sentence += f", and lower in {_counted(below, found)}"
    return f"{sentence} (p < 0.05, Holm)."


def _counted(families: Sequence[str], found: Collection[str]) -> str:
    named = f": {', '.join(families)}" if families else ""
    return f"{len(families)} of {len(found)} families{named}"


def _written(estimate: Estimate) -> str:
    value, low, high = (number(v, 2) for v in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _reliability(when: str, kind: str, answers: Sequence[Answer]) -> Markup:
    """Draw one kind's diagram; its discs lead to their answers, by the page's address."""
    columns = known(answers)

    def address(part: Bin) -> str:
        chosen = {"view": f"{when} greedy", "kind": kind, "low": part.low, "high": part.high}
        return f"#answers&{urlencode(chosen)}"

    panel = Panel(f"{kind} questions", *columns.known, columns.context_N, when, address)
    outcome = "share right" if kind == "closed" else "mean grade"
    words = {address(part): str(part) for part in panel.bins}
    return inline_svg(
        reliability_diagram([panel], outcome), f"Reliability, {kind} questions", words
    )


def _families(
    measured: Mapping[str, Sequence[Answer]],
    found: Mapping[str, Mapping[str, Measured]],
    draws: int,
) -> Markup:
    """Draw AUROC within the families of a kind, then in each family, for each measurement."""
    rows: dict[str, Measured] = {}
    for when, kinds in found.items():
        for kind, values in kinds.items():
            rows.setdefault(f"{kind}, within families", {})[when] = values["auroc_within"]
    for when, answers in measured.items():
        for family, members in parted(answers, lambda answer: answer.probe.family).items():
            columns = known(members)
            area = _auroc(columns, draws) if len(columns) >= _LEAST else None
            if area is not None and not np.isnan(area.value):
                rows.setdefault(family, {})[when] = area
    return inline_svg(estimates({"AUROC": rows}, reference=0.5), "AUROC by family")


def _auroc(columns: Columns, draws: int) -> Estimate:
    confidence_N, outcome_N = columns.known

    def statistic(index_N: np.ndarray) -> float:
        return auroc(confidence_N[index_N], outcome_N[index_N] >= 0.5)

    interval = bootstrap_interval(statistic, columns.context_N, draws=draws)
    return Estimate(statistic(np.arange(len(columns))), *interval)


def _course(found: Mapping[str, Mapping[str, Measured]]) -> dict[str, Markup]:
    """Draw each measurement of the run: a figure a metric, a row a kind of question."""
    figures = {}
    for name in _MEASURED:
        title = TITLES[name]
        rows: dict[str, Measured] = {}
        for when, kinds in found.items():
            for kind, values in kinds.items():
                rows.setdefault(kind, {})[when] = values[name]
        figures[title] = inline_svg(estimates({"": rows}), f"{title} in the course of the run")
    return figures


def _reading(
    kind: str, when: str, answers: Sequence[Answer], controls: Mapping[str, Sequence[Answer]]
) -> Markup:
    """Draw share right and mean confidence on the true activations and on others, same probes."""
    parts = {OWN_TEXT: _asked_again(answers, controls), **controls}
    of_kind = {name: known(_by_kind(part).get(kind, [])) for name, part in parts.items()}
    rows = {
        name: {when: (float(columns.informativeness_N.mean()), float(columns.confidence_N.mean()))}
        for name, columns in of_kind.items()
        if len(columns)
    }
    return inline_svg(gaps(rows), f"The reading test, {kind} questions")


def _asked_again(
    answers: Sequence[Answer], controls: Mapping[str, Sequence[Answer]]
) -> list[Answer]:
    again = {(a.probe.family, a.probe.id) for others in controls.values() for a in others}
    return [answer for answer in answers if (answer.probe.family, answer.probe.id) in again]


def reading_table(
    measured: Mapping[str, Sequence[Answer]], controls: Mapping[str, Sequence[Answer]]
) -> Table | None:
    """Lay out the reading test of a run's last measurement; None where none was made."""
    if not measured or not controls:
        return None
    parts = {OWN_TEXT: _asked_again(list(measured.values())[-1], controls), **controls}
    rows = {}
    for name, part in parts.items():
        values = headline_values(Columns.of(part))
        shown = (values["informativeness"], values["confidence_mean"], values["auroc_within"])
        rows[name] = [number(len(part)), *(number(value, 2) for value in shown)]
    columns = ["activations of", "n", "right", "confidence", "AUROC within families"]
    return Table("The reading test", columns, rows)


def _rivals(kind: str, when: str, answers: Sequence[Answer], draws: int) -> dict[str, Markup]:
    """Draw the sources of confidence in the same answers, each with its cost in tokens."""
    costs = generated_tokens(answers)
    found = {
        f"{method}, {costs[method]:.0f} tokens": measures(columns, draws)
        for method, confidence in METHODS.items()
        if len(columns := known(answers, confidence))
    }
    figures = {}
    for name in ("auroc_within", "brier_all"):
        rows = {method: {when: values[name]} for method, values in found.items()}
        label = f"{TITLES[name]} of other sources, {kind} questions"
        figures[f"{kind.capitalize()} questions, {TITLES[name]}"] = inline_svg(
            estimates({"": rows}), label
        )
    return figures
