"""What answers come to: ``metrics.json``, ``metrics.md``, and the tables of console and report."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table as ConsoleTable

from grpo_ao.answer import Answer
from grpo_ao.calibration import Estimate, risk_coverage
from grpo_ao.files import atomic_write_json, atomic_write_text
from grpo_ao.measuring.confidences import METHODS, baselines, generated_tokens
from grpo_ao.measuring.controls import CONTROLS
from grpo_ao.measuring.metrics import (
    Columns,
    Measurement,
    measure,
    measure_difference,
    parted,
)
from grpo_ao.measuring.reading import (
    Controlled,
    against_stated,
    reading_metrics,
)
from grpo_ao.probe import parse_layers
from grpo_ao.report.formats import TITLES, Table, cell, number
from grpo_ao.report.headline import CHANGES, METRICS, Headline
from grpo_ao.report.meaning import estimated, findings
from grpo_ao.report.plots import (
    Panel,
    layer_curves,
    reliability_diagram,
    risk_coverage_diagram,
    save,
)
from grpo_ao.report.run_record import MODES, Evaluation, RunRecord

Groups = Mapping[str, Sequence[str]]
_BY_LAYER = ("informativeness", "ece10", "auroc_within")
_KINDS = ("closed", "open")
# What a console and a tracker are told of each benchmark.
SHOWN = ("informativeness", "auroc_within", "calibration_error", "brier_all", "parse_rate")


def oracle_metrics(
    answers: Sequence[Answer],
    groups: Groups,
    controlled: Controlled,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Measure one oracle: pooled groups of families, each family, layers, positions, baselines.

    And what its controls tell, with ``findings``, the sentences that a reader needs first.
    ``progress`` is called with the number of measurements made.
    """
    others = {CONTROLS[name]: reading.other for name, reading in controlled.readings.items()}

    def measured(columns: Columns, smooth_interval: bool = False) -> Measurement:
        progress(1)
        return measure(columns, smooth_interval=smooth_interval)

    def by(key: Callable[[Answer], Any]) -> dict[str, Measurement]:
        return {name: measured(Columns.of(part)) for name, part in parted(answers, key).items()}

    sources = baselines(answers, controlled.confidences)
    if controlled.forced:
        sources["forced choice, its own answer"] = Columns.of(controlled.forced)
    kinds = by(lambda answer: answer.probe.kind)
    stating = [kind for kind, measured in kinds.items() if measured["parse_rate"]["value"] > 0]
    return {
        "findings": findings({k: estimated(kinds[k]) for k in stating}, answers, others),
        "kinds": kinds,
        "groups": {
            name: measured(_pooled(answers, members), smooth_interval=True)
            for name, members in groups.items()
        },
        "benchmarks": by(lambda answer: answer.probe.family),
        "layers": by(lambda answer: answer.probe.shown_layers),
        "positions": by(lambda answer: answer.probe.positions),
        "subjects": by(lambda answer: answer.probe.subject or "the base model"),
        "baselines": {name: measured(columns) for name, columns in sources.items()},
        "against_stated": against_stated(answers, controlled.confidences),
        "reading": reading_metrics(controlled.readings),
        "generated_tokens": generated_tokens(answers),
    }


def _pooled(answers: Sequence[Answer], members: Sequence[str]) -> Columns:
    return Columns.of([answer for answer in answers if answer.probe.family in members])


def write_results(
    folder: Path,
    settings: dict[str, Any],
    answers: Mapping[str, Sequence[Answer]],
    groups: Groups,
    seconds: float,
    controlled: Mapping[str, Controlled] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Write metrics and figures of the oracles that gave ``answers``; return ``metrics.json``.

    The first oracle is the one that the others are compared with, paired by text.
    """
    main, *others = answers
    controlled = dict.fromkeys(answers, Controlled({}, {})) | dict(controlled or {})
    metrics = {
        "settings": settings,
        "oracles": {
            name: oracle_metrics(part, groups, controlled[name], progress)
            for name, part in answers.items()
        },
        "differences": {
            f"{main} - {other}": {
                group: measure_difference(
                    _pooled(answers[main], members), _pooled(answers[other], members)
                )
                for group, members in groups.items()
            }
            for other in others
        },
        "seconds": round(seconds, 1),
    }
    draw_figures(folder, answers, {n: m["layers"] for n, m in metrics["oracles"].items()})
    atomic_write_text(folder / "metrics.md", markdown(metrics))
    atomic_write_json(folder / "metrics.json", metrics)
    return metrics


def draw_figures(
    folder: Path,
    answers: Mapping[str, Sequence[Answer]],
    layers: Mapping[str, Mapping[str, Measurement]],
) -> None:
    """Draw each oracle's reliability and layers, and risk and coverage of the first's methods."""
    main, *others = answers
    panels = [_panel(name, Columns.of(answers[name])) for name in (*others, main)]
    diagram = reliability_diagram(panels, "share of right answers", smooth=True)
    save(diagram, folder / "reliability.png")
    curves = {name: Columns.of(answers[main], method) for name, method in METHODS.items()}
    curves |= {f"stated confidence, {name}": Columns.of(answers[name]) for name in others}
    known = {name: columns.known for name, columns in curves.items()}
    risks = {name: risk_coverage(*pair) for name, pair in known.items() if len(pair[0])}
    save(risk_coverage_diagram(risks), folder / "risk_coverage.png")
    save(layer_curves(_by_layer(layers)), folder / "layers.png")


def _panel(title: str, columns: Columns, tone: str = "after") -> Panel:
    known = columns.take(np.flatnonzero(columns.is_known))
    return Panel(title, *known.known, known.context_N, tone=tone)


def _by_layer(
    layers: Mapping[str, Mapping[str, Measurement]],
) -> dict[str, dict[str, dict[int, Estimate]]]:
    """Return the estimates of each metric, for each oracle, at each layer.

    Layers that were read together stand at the one in their middle.
    """
    return {
        TITLES[metric]: {
            name: {_middle(at): Estimate(**measured[metric]) for at, measured in of.items()}
            for name, of in layers.items()
        }
        for metric in _BY_LAYER
    }


def _middle(shown_layers: str) -> int:
    layers = parse_layers(shown_layers)
    return layers[len(layers) // 2]


# The tables of an evaluation, as Markdown

_COLUMNS = (
    *("informativeness", "auroc_within", "calibration_error", "ece10", "ece10_perfect", "auroc"),
    *("brier", "brier_all", "confidence_mean", "parse_rate"),
)
_COMPARED = ("auroc_within", "calibration_error", "auroc", "brier")
_BESIDE = ("auroc_within", "calibration_error", "ece10", "auroc", "brier")
_SOURCES = (*_BESIDE, "nll", "risk_at_80", "aurc")


def markdown(metrics: Mapping[str, Any]) -> str:
    """Lay the metrics out as Markdown tables, intervals in brackets."""
    parts = ["Intervals are 95 %, by bootstrap over texts."]
    for name, oracle in metrics["oracles"].items():
        sentences = "\n".join(f"- {sentence}" for sentence in oracle["findings"])
        parts += [
            f"## {name}",
            sentences,
            *(table.markdown() for table in oracle_tables(oracle)),
        ]
    for table in difference_tables(metrics):
        parts += [f"## {table.title}", table.markdown()]
    return "\n\n".join(parts) + "\n"


def difference_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Lay out what the first oracle is better and worse in than each other one."""
    return [
        _metrics(f"{name}, paired", groups, [*groups])
        for name, groups in metrics["differences"].items()
    ]


def in_short(measured: Mapping[str, Any]) -> str:
    """Write what a console is told of a measurement."""
    return ", ".join(f"{name} {measured[name]['value']:.3f}" for name in SHOWN)


def oracle_tables(oracle: Mapping[str, Any]) -> list[Table]:
    """Lay out one oracle's metrics; what was not measured has no table."""
    groups = oracle["groups"]
    named = {**oracle["benchmarks"], **{f"**{name}**": m for name, m in groups.items()}}
    tables = [
        _measurements("benchmark", _COLUMNS, named),
        _metrics("metrics", groups),
        _measurements("layer", _COLUMNS, oracle["layers"]),
        _measurements("positions", _COLUMNS, oracle["positions"]),
        _measurements("subject", _COLUMNS, oracle["subjects"]),
        _baselines(oracle),
        _against_stated(oracle),
        _reading(oracle),
    ]
    return [table for table in tables if table.rows]


def _metrics(
    title: str,
    measured: Mapping[str, Mapping[str, Any]],
    differences: Collection[str] = (),
    names: Sequence[str] = tuple(TITLES),
) -> Table:
    """Lay out measurements with a row for each metric that they have."""
    rows = {
        TITLES[name]: [cell(m[name], of in differences) for of, m in measured.items()]
        for name in names
        if all(name in m for m in measured.values())
    }
    return Table(title, ["metric", *measured], rows)


def _against_stated(oracle: Mapping[str, Any]) -> Table:
    measured = oracle["against_stated"]
    table = _measurements("less the stated confidence, paired", _COMPARED, measured, True)
    return replace(table, title="Other sources of confidence less the stated one")


def _reading(oracle: Mapping[str, Any]) -> Table:
    """Lay out accuracy and confidence on other activations, and what they are less than before."""
    rows = {}
    for name, parts in oracle["reading"].items():
        cells = [number(parts["own"]["n"])]
        for metric in ("informativeness", "confidence_mean"):
            cells += [cell(parts[part][metric]) for part in ("own", "other")]
            cells.append(cell(parts["difference"][metric], True))
        cells.append(cell(parts["other"]["auroc_within"]))
        rows[name] = cells + [cell(parts["same_answer"].get(kind)) for kind in _KINDS]
    columns = ["read in place of the text", "n", "accuracy on the text", "accuracy"]
    columns += ["change of accuracy", "confidence on the text", "confidence"]
    columns += ["change of confidence", "AUROC within families"]
    columns += [f"same answer, {kind} questions" for kind in _KINDS]
    return Table("The reading test", columns, rows)


def _measurements(
    title: str,
    columns: Sequence[str],
    measured: Mapping[str, Mapping[str, Any]],
    difference: bool = False,
) -> Table:
    """Lay out measurements with a column for each metric."""
    rows = {
        name: [number(m["n"]), *(cell(m.get(column), difference) for column in columns)]
        for name, m in measured.items()
    }
    return Table(title, [title, "n", *(TITLES[column] for column in columns)], rows)


def _baselines(oracle: Mapping[str, Any]) -> Table:
    """Lay out each source of confidence with its cost.

    A recalibrated source (``agreement of 20 + isotonic``) costs what the source costs.
    """
    table = _measurements("confidence from", _SOURCES, oracle["baselines"])
    costs = oracle["generated_tokens"]
    return Table(
        "Other sources of confidence, on the same answers",
        [*table.columns, "tokens an answer"],
        {
            name: [*cells, number(costs.get(name.split(" + ")[0]), 1)]
            for name, cells in table.rows.items()
        },
    )


# The tables of a run


def draw_run(path: Path, measured: Mapping[str, Sequence[Answer]]) -> None:
    """Draw the reliability diagrams of a run's measurements side by side."""
    panels = [_panel(when, Columns.of(answers), tone=when) for when, answers in measured.items()]
    save(reliability_diagram(panels), path)


def summary_table(summary: dict[str, dict[str, dict[str, float]]]) -> ConsoleTable:
    """Lay out the summary: one line a metric, one column a measurement."""
    table = ConsoleTable(title="held-out probes")
    table.add_column("metric", no_wrap=True)
    columns = [(when, mode) for mode in MODES for when in summary if mode in summary[when]]
    for when, mode in columns:
        table.add_column(f"{when}, {mode}", justify="right")
    for metric in summary[columns[0][0]][columns[0][1]]:
        values = [summary[when][mode][metric] for when, mode in columns]
        shown = [str(v) if isinstance(v, int) else f"{v:.3f}" for v in values]
        table.add_row(metric, *shown)
    return table


def heldout_tables(record: RunRecord, headline: Headline | None) -> list[Table]:
    """Lay out the held-out metrics of each mode, and the sources of confidence beside."""
    modes = headline.modes if headline else {}
    tables = [
        _metrics(f"All metrics, {mode} answers", found, CHANGES, METRICS)
        for mode, found in modes.items()
    ]
    names = ("n", *_BESIDE)
    rows = {n: [number(values[c]) for c in names] for n, values in record.baselines.items()}
    title = "Sources of confidence, greedy answers after training"
    columns = ["confidence from", "n", *(TITLES[name] for name in _BESIDE)]
    return [*tables, *([Table(title, columns, rows)] if rows else [])]


# The report's tables of benchmarks

# What is told of each benchmark.
_OF_BENCHMARK = ("informativeness", *_BESIDE, "parse_rate")
_GROUPS = {
    "all": "All benchmarks",
    "in_distribution": "In distribution",
    "out_of_distribution": "Out of distribution",
    "own": "Own benchmarks",
}
_WHEN = {
    "before": "before training",
    "warm_start": "after the warm start",
    "after": "after training",
}


def benchmark_tables(evaluations: Sequence[Evaluation]) -> list[Table]:
    """Lay out the last evaluation, its baselines, its changes, and the course."""
    if not evaluations:
        return []
    last, named = _oracle(evaluations[-1]), when(evaluations[-1].name)
    measured = {_group_title(n): m for n, m in (last["groups"] | last["benchmarks"]).items()}
    tables = [_measurements("benchmark", _OF_BENCHMARK, measured), _baselines(last)]
    if len(evaluations) > 1:
        tables += [*_changes(evaluations[-1]), _course(evaluations)]
    return [replace(tables[0], title=f"Benchmarks, {named}"), *(t for t in tables[1:] if t.rows)]


def _group_title(name: str) -> str:
    return _GROUPS.get(name, name)


def _changes(last: Evaluation) -> list[Table]:
    """Lay out the pooled groups less those of each earlier evaluation that it is compared with."""
    tables = []
    for name, groups in last.metrics["differences"].items():
        named = {_group_title(group): values for group, values in groups.items()}
        table = _measurements("benchmark", _OF_BENCHMARK, named, True)
        before = when(name.partition(" - ")[2])
        tables.append(replace(table, title=f"Change since {before}, paired"))
    return tables


def _course(evaluations: Sequence[Evaluation]) -> Table:
    measured = {when(e.name): _oracle(e)["groups"]["all"] for e in evaluations}
    table = _measurements("when", _OF_BENCHMARK, measured)
    return replace(table, title="All benchmarks, in the course of training")


def when(name: str) -> str:
    """Say when an evaluation was made, from its folder's name: ``step_000100`` is step 100."""
    if name.startswith("step_"):
        return f"step {int(name.removeprefix('step_'))}"
    return _WHEN.get(name, name)


def _oracle(evaluation: Evaluation) -> dict[str, Any]:
    """Return the metrics of the run's own oracle, which comes first."""
    return next(iter(evaluation.metrics["oracles"].values()))
