"""What answers come to: ``metrics.json``, ``metrics.md``, and the tables of console and report."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table as ConsoleTable

from grpo_ao.answer import Answer
from grpo_ao.calibration import risk_coverage
from grpo_ao.files import atomic_write_json, atomic_write_text
from grpo_ao.measuring.confidences import METHODS, baselines, generated_tokens
from grpo_ao.measuring.controls import CONTROLS
from grpo_ao.measuring.metrics import Columns, Measurement, measure, measure_difference, parted
from grpo_ao.measuring.reading import (
    Controlled,
    against_stated,
    reading_metrics,
)
from grpo_ao.probe import parse_layers
from grpo_ao.report.formats import Table, cell, number
from grpo_ao.report.headline import CHANGES, METRICS, Estimate, Headline
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
_BY_LAYER = {"informativeness": "accuracy", "ece10": "ECE", "auroc_within": "AUROC within families"}
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
        title: {
            name: {_middle(at): Estimate(**measured[metric]) for at, measured in of.items()}
            for name, of in layers.items()
        }
        for metric, title in _BY_LAYER.items()
    }


def _middle(shown_layers: str) -> int:
    layers = parse_layers(shown_layers)
    return layers[len(layers) // 2]


# The tables of an evaluation, as Markdown

_COLUMNS = {
    "informativeness": "accuracy",
    "auroc_within": "AUROC within families",
    "calibration_error": "calibration error",
    "ece10": "ECE",
    "ece10_perfect": "perfect forecaster's ECE",
    "auroc": "AUROC",
    "brier": "Brier",
    "brier_all": "Brier, unparsed as 50 % on wrong",
    "confidence_mean": "confidence",
    "parse_rate": "parsed",
}
_METRICS = {
    "informativeness": "accuracy",
    "neither_rate": "neither yes nor no",
    "parse_rate": "outputs with a confidence",
    "confidence_mean": "mean confidence",
    "confidence_std": "standard deviation of confidence",
    "ece10": "ECE, 10 bins of equal width",
    "ece10_perfect": "ECE of a perfect forecaster at these confidences",
    "ece_mass": "ECE, 10 bins of equal mass",
    "calibration_error": "calibration error (RMS, debiased)",
    "ece_smooth": "smooth ECE",
    "mce": "MCE, bins of at least 20 items",
    "brier": "Brier",
    "brier_reliability": "Brier, reliability",
    "brier_resolution": "Brier, resolution",
    "brier_uncertainty": "Brier, uncertainty",
    "brier_isotonic": "Brier after isotonic recalibration (same items)",
    "nll": "NLL",
    "brier_all": "Brier, an output without a confidence as 50 % on a wrong answer",
    "auroc_within": "AUROC within families",
    "auroc": "AUROC",
    "somers_d": "Somers' D over grades",
    "risk_at_80": "risk at 80 % coverage",
    "aurc": "area under risk-coverage",
}


_COMPARED = {
    "auroc_within": "AUROC within families",
    "calibration_error": "calibration error",
    "auroc": "AUROC",
    "brier": "Brier",
}


def markdown(metrics: Mapping[str, Any]) -> str:
    """Lay the metrics out as Markdown tables, intervals in brackets."""
    parts = ["Intervals are 95 %, by bootstrap over texts."]
    for name, oracle in metrics["oracles"].items():
        sentences = "\n".join(f"- {sentence}" for sentence in oracle["findings"])
        parts += [
            f"## {name}",
            sentences,
            *(t.markdown() for t in _oracle_tables(oracle) if t.rows),
        ]
    for name, groups in metrics["differences"].items():
        known = {m: title for m, title in _METRICS.items() if m in next(iter(groups.values()))}
        rows = {t: [_entry(group[m], True) for group in groups.values()] for m, t in known.items()}
        parts += [f"## {name}, paired", Table(name, ["metric", *groups], rows).markdown()]
    return "\n\n".join(parts) + "\n"


def _oracle_tables(oracle: Mapping[str, Any]) -> list[Table]:
    groups = oracle["groups"]
    named = {**oracle["benchmarks"], **{f"**{name}**": m for name, m in groups.items()}}
    every = {title: [_entry(m[name]) for m in groups.values()] for name, title in _METRICS.items()}
    return [
        _measurements("benchmark", _COLUMNS, named),
        Table("metrics", ["metric", *groups], every),
        _measurements("layer", _COLUMNS, oracle["layers"]),
        _measurements("positions", _COLUMNS, oracle["positions"]),
        _measurements("subject", _COLUMNS, oracle["subjects"]),
        _baselines(oracle),
        _against_stated(oracle),
        _reading(oracle),
    ]


def _against_stated(oracle: Mapping[str, Any]) -> Table:
    rows = {
        name: [number(m["n"]), *(_entry(m[metric], True) for metric in _COMPARED)]
        for name, m in oracle["against_stated"].items()
    }
    columns = ["less the stated confidence, paired", "n", *_COMPARED.values()]
    return Table("Other sources of confidence less the stated one", columns, rows)


def _reading(oracle: Mapping[str, Any]) -> Table:
    """Lay out accuracy and confidence on other activations, and what they are less than before."""
    rows = {}
    for name, parts in oracle["reading"].items():
        cells = [number(parts["own"]["n"])]
        for metric in ("informativeness", "confidence_mean"):
            cells += [_entry(parts[part][metric]) for part in ("own", "other")]
            cells.append(_entry(parts["difference"][metric], True))
        cells.append(_entry(parts["other"]["auroc_within"]))
        rows[name] = cells + [_entry(parts["same_answer"].get(kind)) for kind in _KINDS]
    columns = ["read in place of the text", "n", "accuracy on the text", "accuracy", "change"]
    columns += ["confidence on the text", "confidence", "change", "AUROC within families"]
    columns += [f"same answer, {kind} questions" for kind in _KINDS]
    return Table("The reading test", columns, rows)


def _measurements(
    title: str, columns: Mapping[str, str], measured: Mapping[str, Mapping[str, Any]]
) -> Table:
    rows = {name: [number(m["n"]), *_entries(m, columns)] for name, m in measured.items()}
    return Table(title, [title, "n", *columns.values()], rows)


def _baselines(oracle: Mapping[str, Any]) -> Table:
    """Lay out each source of confidence with its cost.

    A recalibrated source (``agreement of 20 + isotonic``) costs what the source costs.
    """
    columns = {
        **{"auroc_within": "AUROC within families", "calibration_error": "calibration error"},
        **{"ece10": "ECE", "auroc": "AUROC", "brier": "Brier", "nll": "NLL"},
        **{"risk_at_80": "risk at 80 % coverage", "aurc": "AURC"},
    }
    costs = oracle.get("generated_tokens", {})
    rows = {}
    for name, m in oracle.get("baselines", {}).items():
        cost = number(costs.get(name.split(" + ")[0]), 1)
        rows[name] = [number(m["n"]), *_entries(m, columns), cost]
    header = ["confidence from", "n", *columns.values(), "tokens an answer"]
    return Table("Other sources of confidence, on the same answers", header, rows)


def _entries(measurement: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    return [_entry(measurement.get(name)) for name in names]


def _entry(entry: Mapping[str, Any] | None, difference: bool = False) -> str:
    if entry is None:
        return cell(None)
    # JSON has null for what is not defined.
    ends = {end: float("nan") if value is None else value for end, value in entry.items()}
    return cell(Estimate(**ends), difference)


# The tables of a run


def draw_run(path: Path, measured: Mapping[str, Mapping[str, Sequence[Answer]]]) -> None:
    """Draw the reliability diagram of each measurement's sampled answers, side by side."""
    panels = [
        _panel(when, Columns.of(modes["sampled"]), tone=when)
        for when, modes in measured.items()
        if "sampled" in modes
    ]
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
    tables = []
    for mode, lines in (headline.modes if headline else {}).items():
        rows = {
            METRICS[line.metric][0]: [
                cell(e, name in CHANGES) for name, e in line.estimates.items()
            ]
            for line in lines
        }
        columns = ["metric", *lines[0].estimates]
        tables.append(Table(f"All metrics, {mode} answers", columns, rows))
    names = {"auroc_within": "AUROC within families", "calibration_error": "Calibration error"}
    names |= {"ece10": "ECE", "auroc": "AUROC", "brier": "Brier", "n": "n"}
    rows = {n: [number(values[c]) for c in names] for n, values in record.baselines.items()}
    title = "Sources of confidence, greedy answers after training"
    baselines = Table(title, ["confidence from", *names.values()], rows)
    return [*tables, *([baselines] if rows else [])]


# The report's tables of benchmarks

COLUMNS = {
    "informativeness": "Accuracy",
    "auroc_within": "AUROC within families",
    "calibration_error": "Calibration error",
    "ece10": "ECE",
    "auroc": "AUROC",
    "brier": "Brier",
    "parse_rate": "Parsed",
}
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
    tables = [_measurements("benchmark", COLUMNS, measured), _baselines(last)]
    if len(evaluations) > 1:
        tables += [*_changes(evaluations[-1]), _course(evaluations)]
    return [replace(tables[0], title=f"Benchmarks, {named}"), *(t for t in tables[1:] if t.rows)]


def _group_title(name: str) -> str:
    return _GROUPS.get(name, name)


def _changes(last: Evaluation) -> list[Table]:
    """Lay out the pooled groups less those of each earlier evaluation that it is compared with."""
    tables = []
    for name, groups in last.metrics["differences"].items():
        rows = {
            _group_title(group): [_entry(values[metric], True) for metric in COLUMNS]
            for group, values in groups.items()
        }
        title = f"Change since {when(name.partition(' - ')[2])}, paired"
        tables.append(Table(title, ["benchmark", *COLUMNS.values()], rows))
    return tables


def _course(evaluations: Sequence[Evaluation]) -> Table:
    rows = {when(e.name): _entries(_oracle(e)["groups"]["all"], COLUMNS) for e in evaluations}
    title = "All benchmarks, in the course of training"
    return Table(title, ["when", *COLUMNS.values()], rows)


def when(name: str) -> str:
    """Say when an evaluation was made, from its folder's name: ``step_000100`` is step 100."""
    if name.startswith("step_"):
        return f"step {int(name.removeprefix('step_'))}"
    return _WHEN.get(name, name)


def _oracle(evaluation: Evaluation) -> dict[str, Any]:
    """Return the metrics of the run's own oracle, which comes first."""
    return next(iter(evaluation.metrics["oracles"].values()))
