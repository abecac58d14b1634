"""Runs and evaluations beside each other, on the questions that all of them were asked."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from grpo_ao.answer import Answer, read_answer_rows
from grpo_ao.errors import UserError
from grpo_ao.files import read_run_json
from grpo_ao.measuring.confidences import METHODS
from grpo_ao.measuring.metrics import (
    STATED,
    Columns,
    Measurement,
    by_kind,
    measure,
    measure_difference,
)
from grpo_ao.report.formats import TITLES, Table, number
from grpo_ao.report.run_record import read_run
from grpo_ao.report.tables import measurements

_METRICS = (
    *("informativeness", "auroc_within", "calibration_error", "auroc", "brier_all"),
    *("confidence_mean", "parse_rate"),
)
# Settings in which runs of one thing differ.
_OWN_SETTINGS = ("seed", "output_dir", "resume")

Answers = Mapping[str, Sequence[Answer]]


def answers_of(folders: Sequence[Path]) -> dict[str, list[Answer]]:
    """Return the greedy answers of each run, the last that it measured, and each oracle evaluated.

    Raises UserError for a folder that is neither, for a run that has measured nothing, and where
    there is one oracle alone.
    """
    found: dict[str, list[Answer]] = {}
    for folder in folders:
        rows = read_answer_rows(folder / "rows.jsonl")
        if rows:
            for oracle in dict.fromkeys(row["oracle"] for row, _ in rows):
                own = [answer for row, answer in rows if row["oracle"] == oracle]
                found[f"{folder}: {oracle}"] = own
            continue
        greedy = read_run(folder).of_mode("greedy")
        if not greedy:
            raise UserError(f"{folder} has no held-out answers yet: compare it once it has.")
        when, answers = list(greedy.items())[-1]
        found[str(folder) if when == "after" else f"{folder}, {when}"] = answers
    if len(found) < 2:
        raise UserError("there is one oracle alone: name the folder of another to compare it with.")
    return found


def paired(answers: Answers) -> dict[str, list[Answer]]:
    """Return the answers to the probes that all have, in one order.

    Where they have none in common, since they read other layers or positions, questions about texts
    are paired, if each was asked once. Raises UserError where nothing can be paired.
    """
    for key in (_probe, _question):
        tables = {name: {key(answer): answer for answer in own} for name, own in answers.items()}
        common = [k for k in next(iter(tables.values())) if all(k in t for t in tables.values())]
        if common and all(len(tables[name]) == len(own) for name, own in answers.items()):
            return {name: [table[k] for k in common] for name, table in tables.items()}
    raise UserError(
        f"{', '.join(answers)} have no question in common: compare what was asked the same."
    )


def _probe(answer: Answer) -> Hashable:
    return answer.probe.key


def _question(answer: Answer) -> Hashable:
    return answer.probe.family, answer.probe.text, answer.probe.question


def comparison(
    answers: Answers, alike: Sequence[Sequence[str]] = (), draws: int = 1000
) -> list[Table]:
    """Lay out paired answers: metrics, and other sources of confidence, each less the first's.

    Closed and open questions have tables of their own. ``alike`` names runs that differ in their
    seed alone, whose mean and standard deviation are shown.
    """
    kinds = {name: by_kind(own) for name, own in answers.items()}
    return [
        replace(table, title=f"{table.title}, {kind} questions")
        for kind in next(iter(kinds.values()))
        for table in _of_kind({name: of[kind] for name, of in kinds.items()}, alike, draws)
        if table.rows
    ]


def _of_kind(answers: Answers, alike: Sequence[Sequence[str]], draws: int) -> list[Table]:
    first, *others = answers
    columns = {name: Columns.of(own) for name, own in answers.items()}
    measured = {name: measure(own, draws) for name, own in columns.items()}
    differences = {
        f"{name}, less {first}": measure_difference(columns[name], columns[first], draws)
        for name in others
    }
    sources = {
        (name, method): Columns.of(own, confidence)
        for name, own in answers.items()
        for method, confidence in METHODS.items()
        if any(confidence(answer) is not None for answer in own)
    }
    told = {
        f"{name}: {method}, less {first}": measure_difference(of, sources[first, method], draws)
        for (name, method), of in sources.items()
        if name != first and METHODS[method] is not STATED and (first, method) in sources
    }
    seeds = {", ".join(names): [measured[name] for name in names] for names in alike}
    return [
        replace(measurements("oracle", _METRICS, measured), title="Greedy answers"),
        replace(
            measurements("difference", _METRICS, differences, difference=True),
            title="Differences, paired",
        ),
        _seeds(seeds),
        replace(
            measurements(
                "source",
                _METRICS,
                {f"{name}: {method}": measure(of, draws) for (name, method), of in sources.items()},
            ),
            title="Sources of confidence",
        ),
        replace(
            measurements("difference", _METRICS, told, difference=True),
            title="Differences of these sources, paired",
        ),
    ]


def _seeds(groups: Mapping[str, Sequence[Measurement]]) -> Table:
    rows = {}
    for name, group in groups.items():
        values = [[measured[metric]["value"] for measured in group] for metric in _METRICS]
        found = [(float(np.mean(of)), float(np.std(of, ddof=1))) for of in values]
        cells = [f"{number(middle)} ± {number(deviation)}" for middle, deviation in found]
        rows[name] = [str(len(group)), *cells]
    columns = ["runs", "seeds", *(TITLES[metric] for metric in _METRICS)]
    return Table("Mean ± standard deviation over seeds", columns, rows)


def differing_in_seed(folders: Sequence[Path], answers: Answers) -> list[list[str]]:
    """Return the names of runs that differ in their seed alone, of each sort two or more.

    ``answers`` are those of ``answers_of``: a run that has none from after training is left out.
    """
    groups: dict[str, list[str]] = {}
    for folder in folders:
        if str(folder) not in answers:
            continue
        config = read_run_json(folder)["config"]
        if "seed" in config:  # an evaluation has none
            same = {name: value for name, value in config.items() if name not in _OWN_SETTINGS}
            groups.setdefault(json.dumps(same, sort_keys=True), []).append(str(folder))
    return [names for names in groups.values() if len(names) > 1]
