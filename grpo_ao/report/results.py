"""What rows come to: ``metrics.json``, ``metrics.md`` and the figures of an evaluation."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_ao.calibration import risk_coverage
from grpo_ao.files import atomic_write_json, atomic_write_text
from grpo_ao.measuring.confidences import (
    METHODS,
    PUBLISHED,
    answers_of,
    baselines,
    generated_tokens,
    stated,
)
from grpo_ao.measuring.metrics import Answers, Measurement, measure, measure_difference
from grpo_ao.report.headline import Estimate
from grpo_ao.report.plots import (
    Panel,
    estimates,
    reliability_diagram,
    risk_coverage_diagram,
    save,
)

Rows = Sequence[Mapping[str, Any]]


def oracle_metrics(
    rows: Rows, groups: Mapping[str, Sequence[str]], progress: Callable[[int], None]
) -> dict[str, Any]:
    """Measure one oracle: pooled groups, benchmarks, layers, positions, baselines.

    ``progress`` is called with the number of measurements made.
    """

    def measured(part: Rows, smooth_interval: bool = False) -> Measurement:
        progress(1)
        return measure(answers_of(part), smooth_interval=smooth_interval)

    pooled = {
        name: measured([row for row in rows if row["benchmark"] in members], True)
        for name, members in groups.items()
    }
    by = {key: _parted(rows, key) for key in ("benchmark", "layer", "positions")}
    result: dict[str, Any] = {"groups": pooled}
    for title, key in (
        ("benchmarks", "benchmark"),
        ("layers", "layer"),
        ("positions", "positions"),
    ):
        result[title] = {name: measured(part) for name, part in by[key].items()}
    result["baselines"] = {}
    for name, answers in baselines(rows).items():
        result["baselines"][name] = measure(answers)
        progress(1)
    result["generated_tokens"] = generated_tokens(rows)
    return result


def _parted(rows: Rows, key: str) -> dict[str, list[Mapping[str, Any]]]:
    parts: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        parts[str(row[key])].append(row)
    return dict(parts)


def oracle_differences(
    first: Rows, second: Rows, groups: Mapping[str, Sequence[str]]
) -> dict[str, Measurement]:
    """Return first less second for each pooled group, paired by context."""

    def pooled(rows: Rows, members: Sequence[str]) -> Answers:
        return answers_of([row for row in rows if row["benchmark"] in members])

    return {
        name: measure_difference(pooled(first, members), pooled(second, members))
        for name, members in groups.items()
    }


def write_results(
    folder: Path,
    settings: dict[str, Any],
    rows: Mapping[str, Rows],
    groups: Mapping[str, Sequence[str]],
    seconds: float,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Write metrics and figures of the oracles ``rows`` are of; return ``metrics.json``'s content.

    The first oracle is the one that the others are compared with.
    """
    main, *others = rows
    metrics = {
        "settings": settings,
        "oracles": {name: oracle_metrics(part, groups, progress) for name, part in rows.items()},
        "differences": {
            f"{main} - {other}": oracle_differences(rows[main], rows[other], groups)
            for other in others
        },
        "published": PUBLISHED,
        "seconds": round(seconds, 1),
    }
    draw_figures(folder, rows, {n: m["layers"] for n, m in metrics["oracles"].items()})
    atomic_write_text(folder / "metrics.md", markdown(metrics))
    atomic_write_json(folder / "metrics.json", metrics)
    return metrics


def draw_figures(
    folder: Path, rows: Mapping[str, Rows], layers: Mapping[str, Mapping[str, Measurement]]
) -> None:
    """Draw each oracle's reliability and layers, and risk and coverage of the first's methods."""
    main, *others = rows
    panels = []
    for name in (*others, main):
        answers = answers_of(rows[name])
        known = answers.stated_N
        confidence, correct = answers.confidence_N[known], answers.correct_N[known]
        panels.append(Panel(name, confidence, correct, answers.context_N[known]))
    diagram = reliability_diagram(panels, "share of right answers", smooth=True)
    save(diagram, folder / "reliability.png")
    curves = {name: answers_of(rows[main], method) for name, method in METHODS.items()}
    curves |= {f"stated confidence, {name}": answers_of(rows[name], stated) for name in others}
    known = {name: answers.take(answers.stated_N.nonzero()[0]) for name, answers in curves.items()}
    risks = {n: risk_coverage(a.confidence_N, a.correct_N) for n, a in known.items() if len(a)}
    save(risk_coverage_diagram(risks), folder / "risk_coverage.png")
    save(estimates(_by_layer(layers)), folder / "layers.png")


def _by_layer(
    layers: Mapping[str, Mapping[str, Measurement]],
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Return the estimates of each metric at each layer for each oracle."""
    return {
        title: {
            f"layer {layer}": {n: Estimate(**m[layer][metric]) for n, m in layers.items()}
            for layer in next(iter(layers.values()))
        }
        for metric, title in {"accuracy": "accuracy", "ece10": "ECE", "auroc": "AUROC"}.items()
    }


# The table

_COLUMNS = {
    "accuracy": "accuracy",
    "ece10": "ECE",
    "ece10_perfect": "perfect forecaster's ECE",
    "auroc": "AUROC",
    "brier": "Brier",
    "confidence_mean": "confidence",
    "parse_rate": "parsed",
}
_METRICS = {
    "accuracy": "accuracy",
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
    lines = ["Intervals are 95 %, by bootstrap over contexts.", ""]
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
