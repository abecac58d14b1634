"""Does the number mean anything? The figures of held-out greedy answers that the report opens with.

Closed and open questions are kept apart, and right answers are told from wrong ones of the same
family: see ``findings``, which has the sentences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import numpy as np
from markupsafe import Markup

from grpo_ao.answer import Answer
from grpo_ao.calibration import Estimate, auroc, bootstrap_interval
from grpo_ao.measuring.confidences import METHODS, generated_tokens
from grpo_ao.measuring.metrics import (
    STATED,
    Columns,
    Confidence,
    Measurement,
    by_kind,
    count_texts,
    measure,
    parted,
    summary,
)
from grpo_ao.probe import FEW_TEXTS
from grpo_ao.report.findings import MEASURED
from grpo_ao.report.formats import TITLES, Table, few_of, number
from grpo_ao.report.plots import Bin, Panel, estimates, gaps, inline_svg, reliability_diagram

DRAWS = 200
# A family with fewer answers is not shown by itself.
SMALL_FAMILY = 20
OWN_TEXT = "its own text"
Rows = dict[str, dict[str, Estimate]]
"""Estimates by row of a figure, and by measurement."""


@dataclass(frozen=True)
class Meaning:
    """The opening of the report; what a run has not measured is empty.

    ``measured`` names the measurements. Figures are by kind of question: ``reliability``,
    ``families`` with AUROC in each, ``reading`` with what other activations do, ``rivals`` with
    other sources of confidence and their cost; ``course`` has each metric in the course of the run.
    """

    measured: list[str]
    reliability: dict[str, Markup]
    families: dict[str, Markup]
    course: dict[str, Markup]
    reading: dict[str, Markup]
    rivals: dict[str, dict[str, Markup]]


def meaning(
    measured: Mapping[str, Sequence[Answer]],
    kinds: Mapping[str, Mapping[str, Measurement]],
    controls: Mapping[str, Sequence[Answer]],
    draws: int = DRAWS,
) -> Meaning | None:
    """Return the opening; None where no confidence is known yet.

    ``measured`` holds the greedy answers of each measurement (``before``), the last of which is
    judged, ``kinds`` what they came to for each kind of question (``headline.compared``), and
    ``controls`` the last oracle's answers where it read other activations.
    """
    stating = {when: answers for when, answers in measured.items() if len(known(answers))}
    if not stating:
        return None
    when, last = list(stating.items())[-1]
    of_kind = {kind: part for kind, part in by_kind(last).items() if len(known(part))}
    return Meaning(
        measured=list(stating),
        reliability={kind: _reliability(when, kind, part) for kind, part in of_kind.items()},
        families={kind: _families(kind, stating, kinds[kind], draws) for kind in of_kind},
        course=_course([*stating], {kind: kinds[kind] for kind in of_kind}),
        reading={kind: _reading(kind, when, last, controls) for kind in of_kind if controls},
        rivals={kind: _rivals(kind, when, part, draws) for kind, part in of_kind.items()},
    )


def known(answers: Sequence[Answer], confidence: Confidence = STATED) -> Columns:
    """Return the columns of the answers of which confidence and informativeness are known."""
    return Columns.of(answers, confidence).only_known()


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
    kind: str,
    measured: Mapping[str, Sequence[Answer]],
    found: Mapping[str, Measurement],
    draws: int,
) -> Markup:
    """Draw AUROC within the families of a kind, then in each of them, the highest first."""
    rows: Rows = {}
    few = set()
    for when, answers in measured.items():
        of_kind = by_kind(answers).get(kind, [])
        for family, members in parted(of_kind, lambda answer: answer.probe.family).items():
            columns = known(members)
            area = _auroc(columns, draws) if len(columns) >= SMALL_FAMILY else None
            if area is not None and not np.isnan(area.value):
                rows.setdefault(family, {})[when] = area
                few |= {family} if count_texts(columns) < FEW_TEXTS else set()
    ordered = sorted(rows, key=lambda family: -list(rows[family].values())[-1].value)
    pooled = {when: Estimate(**found[when]["auroc_within"]) for when in measured}
    drawn = {"within families": pooled} | {family: rows[family] for family in ordered}
    figure = estimates(drawn, "AUROC", reference=0.5, few=few)
    return inline_svg(figure, f"AUROC by family, {kind} questions")


def _auroc(columns: Columns, draws: int) -> Estimate:
    confidence_N, outcome_N = columns.known

    def statistic(index_N: np.ndarray) -> float:
        return auroc(confidence_N[index_N], outcome_N[index_N] >= 0.5)

    interval = bootstrap_interval(statistic, columns.context_N, draws=draws)
    return Estimate(statistic(np.arange(len(columns))), *interval)


def _course(
    measured: Sequence[str], kinds: Mapping[str, Mapping[str, Measurement]]
) -> dict[str, Markup]:
    """Draw each measurement of the run: a figure a metric, a row a kind of question."""
    few = {kind for kind, found in kinds.items() if found[measured[-1]]["contexts"] < FEW_TEXTS}
    figures = {}
    for name in MEASURED:
        rows = {
            kind: {when: Estimate(**found[when][name]) for when in measured}
            for kind, found in kinds.items()
        }
        title = TITLES[name]
        figures[title] = inline_svg(estimates(rows, few=few), f"{title} in the course of the run")
    return figures


def _reading(
    kind: str, when: str, answers: Sequence[Answer], controls: Mapping[str, Sequence[Answer]]
) -> Markup:
    """Draw share right and mean confidence on the true activations and on others, same probes."""
    rows, few = {}, set()
    for name, part in _read_alike(answers, controls).items():
        columns = known(by_kind(part).get(kind, []))
        if len(columns):
            means = columns.informativeness_N.mean(), columns.confidence_N.mean()
            rows[name] = {when: means}
            few |= {name} if count_texts(columns) < FEW_TEXTS else set()
    return inline_svg(gaps(rows, few), f"The reading test, {kind} questions")


def _read_alike(
    answers: Sequence[Answer], controls: Mapping[str, Sequence[Answer]]
) -> dict[str, Sequence[Answer]]:
    """Return the answers to what was asked again: on its own text, then under each control."""
    again = {answer.probe.key for others in controls.values() for answer in others}
    own = [answer for answer in answers if answer.probe.key in again]
    return {OWN_TEXT: own, **controls}


def reading_tables(
    measured: Mapping[str, Sequence[Answer]], controls: Mapping[str, Sequence[Answer]]
) -> list[Table]:
    """Lay out the reading test of a run's last measurement; none where none was made."""
    if not measured or not controls:
        return []
    read = _read_alike(list(measured.values())[-1], controls)
    kinds = {name: by_kind(part) for name, part in read.items()}
    return [
        _reading_table(kind, {name: of.get(kind, []) for name, of in kinds.items()})
        for kind in kinds[OWN_TEXT]
    ]


def _reading_table(kind: str, read: Mapping[str, Sequence[Answer]]) -> Table:
    columns = ["activations of", "n", "right", "confidence", "AUROC within families"]
    found = {name: summary(Columns.of(part)) for name, part in read.items()}
    shown = ("n", "informativeness", "confidence_mean", "auroc_within")
    rows = {name: [number(values[of], 2) for of in shown] for name, values in found.items()}
    return Table(f"The reading test, {kind} questions", columns, rows, few_of(found))


def _rivals(kind: str, when: str, answers: Sequence[Answer], draws: int) -> dict[str, Markup]:
    """Draw the sources of confidence in the same answers, each with its cost in tokens."""
    costs = generated_tokens(answers)
    columns = {name: known(answers, confidence) for name, confidence in METHODS.items()}
    found = {
        f"{name}, {costs[name]:.0f} tokens": measure(part, draws)
        for name, part in columns.items()
        if len(part)
    }
    few = few_of(found)
    figures = {}
    for metric in ("auroc_within", "brier_all"):
        rows = {name: {when: Estimate(**measured[metric])} for name, measured in found.items()}
        label = f"{TITLES[metric]} of other sources, {kind} questions"
        title = f"{kind.capitalize()} questions, {TITLES[metric]}"
        figures[title] = inline_svg(estimates(rows, few=few), label)
    return figures
