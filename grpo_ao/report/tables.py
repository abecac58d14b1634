"""What answers come to: ``metrics.json``, ``metrics.md``, and the tables of console and report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from grpo_ao.answer import Answer
from grpo_ao.calibration import risk_coverage
from grpo_ao.files import atomic_write_json, atomic_write_text
from grpo_ao.measuring.confidences import METHODS, PUBLISHED, baselines, generated_tokens
from grpo_ao.measuring.metrics import Columns, Measurement, measure, measure_difference, parted
from grpo_ao.report.headline import Estimate
from grpo_ao.report.plots import (
    Panel,
    estimates,
    reliability_diagram,
    risk_coverage_diagram,
    save,
)
from grpo_ao.report.run_record import MODES, Evaluation

Groups = Mapping[str, Sequence[str]]
_BY_LAYER = {"informativeness": "accuracy", "ece10": "ECE", "auroc": "AUROC"}
# What a console and a tracker are told of each benchmark.
SHOWN = ("informativeness", "ece10", "auroc", "brier", "parse_rate")


def oracle_metrics(
    answers: Sequence[Answer], groups: Groups, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Measure one oracle: pooled groups of families, each family, layers, positions, baselines.

    ``progress`` is called with the number of measurements made.
    """

    def measured(columns: Columns, smooth_interval: bool = False) -> Measurement:
        progress(1)
        return measure(columns, smooth_interval=smooth_interval)

    def by(key: Callable[[Answer], Any]) -> dict[str, Measurement]:
        return {name: measured(Columns.of(part)) for name, part in parted(answers, key).items()}

    return {
        "groups": {
            name: measured(_pooled(answers, members), smooth_interval=True)
            for name, members in groups.items()
        },
        "benchmarks": by(lambda answer: answer.probe.family),
        "layers": by(lambda answer: answer.probe.layer),
        "positions": by(lambda answer: answer.probe.positions),
        "baselines": {name: measured(columns) for name, columns in baselines(answers).items()},
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
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Write metrics and figures of the oracles that gave ``answers``; return ``metrics.json``.

    The first oracle is the one that the others are compared with, paired by text.
    """
    main, *others = answers
    metrics = {
        "settings": settings,
        "oracles": {name: oracle_metrics(part, groups, progress) for name, part in answers.items()},
        "differences": {
            f"{main} - {other}": {
                group: measure_difference(
                    _pooled(answers[main], members), _pooled(answers[other], members)
                )
                for group, members in groups.items()
            }
            for other in others
        },
        "published": PUBLISHED,
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
    save(estimates(_by_layer(layers)), folder / "layers.png")


def _panel(title: str, columns: Columns, tone: str = "after") -> Panel:
    known = columns.take(np.flatnonzero(columns.is_known))
    return Panel(title, *known.known, known.context_N, tone=tone)


def _by_layer(
    layers: Mapping[str, Mapping[str, Measurement]],
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Return the estimates of each metric at each layer for each oracle."""
    return {
        title: {
            f"layer {layer}": {n: Estimate(**m[layer][metric]) for n, m in layers.items()}
            for layer in next(iter(layers.values()))
        }
        for metric, title in {
            "informativeness": "accuracy",
            "ece10": "ECE",
            "auroc": "AUROC",
        }.items()
    }


# The tables of an evaluation, as Markdown

_COLUMNS = {
    "informativeness": "accuracy",
    "ece10": "ECE",
    "ece10_perfect": "perfect forecaster's ECE",
    "auroc": "AUROC",
    "brier": "Brier",
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
    "ece_debiased": "ECE, bias-corrected",
    "ece_smooth": "smooth ECE",
    "mce": "MCE, bins of at least 20 items",
    "brier": "Brier",
    "brier_reliability": "Brier, reliability",
    "brier_resolution": "Brier, resolution",
    "brier_uncertainty": "Brier, uncertainty",
    "brier_isotonic": "Brier after isotonic recalibration (same items)",
    "nll": "NLL",
    "auroc": "AUROC",
    "aurc": "area under risk-coverage",
}


def markdown(metrics: Mapping[str, Any]) -> str:
    """Lay the metrics out as Markdown tables, intervals in brackets."""
    lines = ["Intervals are 95 %, by bootstrap over texts.", ""]
    for name, oracle in metrics["oracles"].items():
        lines += [f"## {name}", "", *_oracle_lines(oracle, metrics["published"])]
    for name, groups in metrics["differences"].items():
        header = ["metric", *groups]
        body = [
            [title, *(_cell(group[metric], signed=True) for group in groups.values())]
            for metric, title in _METRICS.items()
            if metric in next(iter(groups.values()))
        ]
        lines += [f"## {name}, paired", "", *_table(header, body)]
    return "\n".join(lines)


def _oracle_lines(oracle: Mapping[str, Any], published: Mapping[str, Any]) -> list[str]:
    named = {**oracle["benchmarks"], **{f"**{k}**": v for k, v in oracle["groups"].items()}}
    lines = _table(
        ["benchmark", "n", *_COLUMNS.values()],
        [[name, str(m["n"]), *(_cell(m[c]) for c in _COLUMNS)] for name, m in named.items()],
    )
    lines += _table(
        ["metric", *oracle["groups"]],
        [
            [title, *(_cell(group[metric]) for group in oracle["groups"].values())]
            for metric, title in _METRICS.items()
        ],
    )
    for title, key in (("layer", "layers"), ("positions", "positions")):
        lines += _table(
            [title, "n", *_COLUMNS.values()],
            [[k, str(m["n"]), *(_cell(m[c]) for c in _COLUMNS)] for k, m in oracle[key].items()],
        )
    return lines + _baseline_lines(oracle, published)


def _baseline_lines(oracle: Mapping[str, Any], published: Mapping[str, Any]) -> list[str]:
    columns = {"ece10": "ECE", "auroc": "AUROC", "brier": "Brier", "nll": "NLL", "aurc": "AURC"}
    costs = oracle["generated_tokens"]
    body = []
    for name, m in oracle["baselines"].items():
        cost = costs.get(name.split(" + ")[0])
        tokens = "" if cost is None else f"{cost:.1f}"
        body.append([name, str(m["n"]), *(_cell(m[c]) for c in columns), tokens])
    for name, values in published.items():
        known = [f"{values[c]:.3f}" if c in values else "" for c in columns]
        body.append([f"published, Qwen3-8B (arXiv 2605.26045): {name}", "", *known, ""])
    return _table(["confidence from", "n", *columns.values(), "tokens an item"], body)


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *body]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def _cell(entry: Mapping[str, float | None], signed: bool = False) -> str:
    value, low, high = entry["value"], entry["low"], entry["high"]
    if value is None or value != value:
        return ""
    sign = "+" if signed else ""
    shown = f"{value:{sign}.3f}"
    if low is None or high is None or low != low:
        return shown
    return f"{shown} [{low:{sign}.3f}, {high:{sign}.3f}]"


# The tables of a run


def draw_run(path: Path, measured: Mapping[str, Mapping[str, Sequence[Answer]]]) -> None:
    """Draw the reliability diagram of each measurement's sampled answers, side by side."""
    panels = [
        _panel(when, Columns.of(modes["sampled"]), tone=when) for when, modes in measured.items()
    ]
    save(reliability_diagram(panels), path)


def summary_table(summary: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Lay out the summary: one line a metric, one column a measurement."""
    table = Table(title="held-out probes")
    table.add_column("metric", no_wrap=True)
    columns = [(when, mode) for mode in MODES for when in summary]
    for when, mode in columns:
        table.add_column(f"{when}, {mode}", justify="right")
    for metric in next(iter(summary.values()))["sampled"]:
        values = [summary[when][mode][metric] for when, mode in columns]
        shown = [str(v) if isinstance(v, int) else f"{v:.3f}" for v in values]
        table.add_row(metric, *shown)
    return table


# The report's tables of benchmarks

COLUMNS = {
    "informativeness": "Accuracy",
    "ece10": "ECE",
    "auroc": "AUROC",
    "brier": "Brier",
    "parse_rate": "Parsed",
}
_OF_BASELINES = ("ece10", "auroc", "brier")
_PUBLISHED = "published, Qwen3-8B (arXiv 2605.26045)"
_GROUPS = {
    "all": "All benchmarks",
    "in_distribution": "In distribution",
    "out_of_distribution": "Out of distribution",
}
_WHEN = {"before": "before training", "after": "after training"}


def benchmark_tables(evaluations: Sequence[Evaluation]) -> dict[str, Any] | None:
    """Return what the report shows of the evaluations, or None if there are none.

    ``rows`` are the pooled groups and the benchmarks, each with its metrics in the first and in
    the last evaluation, and of groups the paired ``change``; ``baselines`` those of the last;
    ``course`` the pooled metrics of each.
    """
    if not evaluations:
        return None
    first, last = _oracle(evaluations[0]), _oracle(evaluations[-1])
    # The last evaluation compares itself with the first, by pooled groups.
    changes = next(iter(evaluations[-1].metrics["differences"].values()), {})
    rows = [
        {"name": _GROUPS.get(name, name), "pooled": part == "groups"}
        | {"first": first[part].get(name), "last": metrics}
        | {"change": changes.get(name) if part == "groups" else None}
        for part in ("groups", "benchmarks")
        for name, metrics in last[part].items()
    ]
    return {
        "columns": COLUMNS,
        "compared": len(evaluations) > 1,
        "first": when(evaluations[0].name),
        "last": when(evaluations[-1].name),
        "rows": rows,
        "baseline_columns": {name: COLUMNS[name] for name in _OF_BASELINES},
        "baselines": _baselines(evaluations[-1]),
        "course": [(when(e.name), _oracle(e)["groups"]["all"]) for e in evaluations],
    }


def _baselines(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return each source of confidence with its metrics and its cost in tokens an item.

    A recalibrated source (``agreement of 20 + isotonic``) costs what the source costs.
    """
    oracle = _oracle(evaluation)
    costs = oracle.get("generated_tokens", {})
    rows = [
        {"name": name, "tokens": costs.get(name.split(" + ")[0]), "metrics": metrics}
        for name, metrics in oracle.get("baselines", {}).items()
    ]
    published = evaluation.metrics.get("published", {}) if rows else {}
    for name, values in published.items():
        metrics = {
            key: {"value": value, "low": None, "high": None} for key, value in values.items()
        }
        rows.append({"name": f"{_PUBLISHED}: {name}", "tokens": None, "metrics": metrics})
    return rows


def when(name: str) -> str:
    """Say when an evaluation was made, from its folder's name: ``step_000100`` is step 100."""
    if name.startswith("step_"):
        return f"step {int(name.removeprefix('step_'))}"
    return _WHEN.get(name, name)


def _oracle(evaluation: Evaluation) -> dict[str, Any]:
    """Return the metrics of the run's own oracle, which comes first."""
    return next(iter(evaluation.metrics["oracles"].values()))
