"""What answers come to: ``metrics.json``, ``metrics.md``, and the tables of console and report."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table as ConsoleTable

from grpo_ao.answer import Answer
from grpo_ao.calibration import Estimate, risk_coverage
from grpo_ao.files import atomic_write_json, atomic_write_text
from grpo_ao.measuring.confidences import METHODS, baselines, generated_tokens
from grpo_ao.measuring.metrics import (
    SUMMARY,
    Columns,
    Measurement,
    by_kind,
    measure,
    measure_difference,
    parted,
)
from grpo_ao.measuring.reading import (
    CONTROLS,
    Controlled,
    against_stated,
    reading_metrics,
)
from grpo_ao.probe import Layers, parse_layers
from grpo_ao.report.findings import findings
from grpo_ao.report.formats import TITLES, Table, cell, few_of, number
from grpo_ao.report.headline import CHANGES, METRICS, Headline
from grpo_ao.report.plots import (
    Panel,
    layer_curves,
    reliability_diagram,
    risk_coverage_diagram,
    save,
)
from grpo_ao.report.run_record import WHEN, Evaluation, RunRecord

Groups = Mapping[str, Sequence[str]]
Wanted = tuple[str, str, Columns]
Track = Callable[[str, Sequence[Wanted]], Iterable[Wanted]]
_BY_LAYER = ("informativeness", "ece10", "auroc_within")
# What a console and a tracker are told of each benchmark.
SHOWN = ("informativeness", "auroc_within", "calibration_error", "brier_all", "parse_rate")


class Part(NamedTuple):
    """One oracle's answers to one kind of question, and what controls tell of them."""

    oracle: str
    kind: str
    answers: Sequence[Answer]
    controlled: Controlled


def kinds_apart(
    answers: Mapping[str, Sequence[Answer]], controlled: Mapping[str, Controlled]
) -> dict[str, Part]:
    """Part each oracle's answers by kind of question; named by the oracle where there is one."""
    parts = {}
    for oracle, given in answers.items():
        kinds = by_kind(given)
        for kind, own in kinds.items():
            name = oracle if len(kinds) == 1 else f"{oracle}, {kind} questions"
            told = controlled.get(oracle, Controlled({}, {})).of_kind(given, kind)
            parts[name] = Part(oracle, kind, own, told)
    return parts


def oracle_metrics(part: Part, groups: Groups, track: Track) -> dict[str, Any]:
    """Measure one oracle, and what its controls tell.

    ``findings`` are the sentences that a reader needs first.
    """
    oracle, kind, answers, controlled = part
    others = {CONTROLS[name]: reading.other for name, reading in controlled.readings.items()}
    every = Columns.of(answers)
    pooled = measure(every, smooth_interval=True)
    wanted = _to_measure(part, groups, every)
    measured: dict[str, dict[str, Measurement]] = {of: {} for of in wanted}
    each = [(of, name, part) for of, parts in wanted.items() for name, part in parts.items()]
    for of, name, columns in track(f"measuring {oracle}", each):
        smooth = of == "groups"
        found = pooled if columns is every else measure(columns, smooth_interval=smooth)
        measured[of][name] = found
    return {
        "oracle": oracle,
        "kind": kind,
        "findings": findings({kind: pooled}, answers, others),
        **measured,
        "against_stated": against_stated(answers, controlled.confidences),
        "reading": reading_metrics(controlled),
        "generated_tokens": generated_tokens(answers),
    }


def _to_measure(part: Part, groups: Groups, every: Columns) -> dict[str, dict[str, Columns]]:
    """Return what an oracle is measured on: ``every`` answer wherever a part is all of them."""
    answers = part.answers

    def by(key: Callable[[Answer], Any]) -> dict[str, Columns]:
        parts = parted(answers, key)
        return {n: every if len(parts) == 1 else Columns.of(own) for n, own in parts.items()}

    sources = baselines(answers, part.controlled.confidences)
    if part.controlled.forced:
        sources["forced choice, its own answer"] = Columns.of(part.controlled.forced)
    return {
        "groups": _pooled(answers, groups) | {"all": every},
        "benchmarks": by(lambda answer: answer.probe.family),
        "layers": dict(sorted(by(lambda answer: answer.probe.shown_layers).items(), key=_layers)),
        "positions": by(lambda answer: answer.probe.positions),
        "subjects": by(lambda answer: answer.probe.subject or "the base model"),
        "baselines": {n: every if n == "stated confidence" else c for n, c in sources.items()},
    }


def _layers(part: tuple[str, Columns]) -> Layers:
    return parse_layers(part[0])


def _pooled(answers: Sequence[Answer], groups: Groups) -> dict[str, Columns]:
    """Return the columns of each group of families that has answers."""
    of_group = {
        name: [answer for answer in answers if answer.probe.family in members]
        for name, members in groups.items()
    }
    return {name: Columns.of(part) for name, part in of_group.items() if part}


def write_results(
    folder: Path,
    settings: dict[str, Any],
    answers: Mapping[str, Sequence[Answer]],
    groups: Groups,
    seconds: float,
    controlled: Mapping[str, Controlled] | None = None,
    track: Track = lambda _, wanted: wanted,
) -> dict[str, Any]:
    """Write metrics and figures of the oracles that gave ``answers``; return ``metrics.json``.

    The first oracle is the one that the others are compared with, paired by text. Where questions
    are closed and open, each kind is measured for itself, as an oracle of its own. ``track`` shows
    how far a list of measurements, of a name, has come.
    """
    parts = kinds_apart(answers, controlled or {})
    metrics = {
        "settings": settings,
        "oracles": {name: oracle_metrics(part, groups, track) for name, part in parts.items()},
        "differences": _differences(parts, groups),
        "seconds": round(seconds, 1),
    }
    draw_figures(folder, parts, {n: m["layers"] for n, m in metrics["oracles"].items()})
    atomic_write_text(folder / "metrics.md", markdown(metrics))
    atomic_write_json(folder / "metrics.json", metrics)
    return metrics


def _differences(parts: Mapping[str, Part], groups: Groups) -> dict[str, dict[str, Measurement]]:
    """Return the first oracle's paired differences from each other one, group by group."""
    first = next(iter(parts.values())).oracle
    found = {}
    for name, other in parts.items():
        for own_name, own in parts.items():
            if own.oracle == first != other.oracle and own.kind == other.kind:
                pairs = _pooled(own.answers, groups), _pooled(other.answers, groups)
                found[f"{own_name} - {name}"] = {
                    group: measure_difference(columns, pairs[1][group])
                    for group, columns in pairs[0].items()
                }
    return found


def draw_figures(
    folder: Path, parts: Mapping[str, Part], layers: Mapping[str, Mapping[str, Measurement]]
) -> None:
    """Draw each oracle's reliability and layers, and risk and coverage of the first's methods."""
    (first, main), *others = parts.items()
    panels = [_panel(name, Columns.of(part.answers)) for name, part in [*others, (first, main)]]
    diagram = reliability_diagram(panels, "share of right answers", smooth=True)
    save(diagram, folder / "reliability.png")
    curves = {name: Columns.of(main.answers, method) for name, method in METHODS.items()}
    curves |= {f"stated confidence, {name}": Columns.of(part.answers) for name, part in others}
    known = {name: columns.known for name, columns in curves.items()}
    risks = {name: risk_coverage(*pair) for name, pair in known.items() if len(pair[0])}
    save(risk_coverage_diagram(risks), folder / "risk_coverage.png")
    save(layer_curves(_by_layer(layers)), folder / "layers.png")


def _panel(title: str, columns: Columns, tone: str = "after") -> Panel:
    known = columns.only_known()
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
    *("brier_all", "confidence_mean", "parse_rate"),
)
_COMPARED = ("auroc_within", "calibration_error", "auroc", "brier")
_BESIDE = ("auroc_within", "calibration_error", "ece10", "auroc", "brier")
_SOURCES = (*_BESIDE, "nll", "risk_at_80", "aurc")
_OF_RUN = (*METRICS, "ece10_perfect")


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
    """Lay out the first oracle's paired differences from each other one."""
    return [
        _metrics(f"{name}, paired", groups, [*groups])
        for name, groups in metrics["differences"].items()
    ]


def in_short(oracle: Mapping[str, Any]) -> str:
    """Return an oracle's main metrics in a line."""
    pooled = oracle["groups"]["all"]
    return ", ".join(f"{name} {number(pooled[name]['value'])}" for name in SHOWN)


def oracle_tables(oracle: Mapping[str, Any]) -> list[Table]:
    """Lay out one oracle's metrics; what was not measured has no table."""
    groups = {_group_title(name): m for name, m in oracle["groups"].items()}
    parts = {"layer": "layers", "positions": "positions", "subject": "subjects"}
    tables = [
        measurements("benchmark", _COLUMNS, oracle["benchmarks"] | groups),
        _metrics("All metrics", groups),
        # One alone is what has been told of all.
        *(measurements(n, _COLUMNS, oracle[of]) for n, of in parts.items() if len(oracle[of]) > 1),
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
        TITLES[name]: [cell(m.get(name), of in differences) for of, m in measured.items()]
        for name in names
        if any(name in m for m in measured.values())
    }
    return Table(title, ["metric", *measured], rows, few_of(measured))


def _against_stated(oracle: Mapping[str, Any]) -> Table:
    measured = oracle["against_stated"]
    table = measurements("less the stated confidence, paired", _COMPARED, measured, True)
    return replace(table, title="Other sources of confidence less the stated one")


def _reading(oracle: Mapping[str, Any]) -> Table:
    """Lay out accuracy and confidence on other activations, and what they are less than before."""
    rows = {}
    for name, parts in oracle["reading"].items():
        cells = [number(parts["own"]["n"])]
        for metric in ("informativeness", "confidence_mean"):
            cells += [cell(parts[part][metric]) for part in ("own", "other")]
            cells.append(cell(parts["difference"][metric], True))
        rows[name] = [*cells, cell(parts["other"]["auroc_within"]), cell(parts["same_answer"])]
    columns = ["read in place of the text", "n", "accuracy on the text", "accuracy"]
    columns += ["change of accuracy", "confidence on the text", "confidence"]
    columns += ["change of confidence", "AUROC within families", "same answer"]
    own = {name: parts["own"] for name, parts in oracle["reading"].items()}
    return Table("The reading test", columns, rows, few_of(own))


def measurements(
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
    titles = [title, "n", *(TITLES[column] for column in columns)]
    return Table(f"By {title}", titles, rows, few_of(measured))


def _baselines(oracle: Mapping[str, Any]) -> Table:
    """Lay out each source of confidence with its cost.

    A recalibrated source (``agreement of 20 + isotonic``) costs what the source costs.
    """
    table = measurements("confidence from", _SOURCES, oracle["baselines"])
    costs = oracle["generated_tokens"]
    return replace(
        table,
        title="Other sources of confidence, on the same answers",
        columns=[*table.columns, "tokens an answer"],
        rows={
            name: [*cells, number(costs.get(name.split(" + ")[0]), 1)]
            for name, cells in table.rows.items()
        },
    )


# The tables of a run


def draw_run(path: Path, measured: Mapping[str, Sequence[Answer]]) -> None:
    """Draw the reliability diagrams of a run's measurements, each kind of question apart."""
    panels = [
        _panel(f"{when}, {kind} questions", Columns.of(part), tone=when)
        for when, answers in measured.items()
        for kind, part in by_kind(answers).items()
    ]
    save(reliability_diagram(panels), path)


def summary_tables(headline: Headline) -> list[ConsoleTable]:
    """Lay out what a run is judged by: a line for each metric, a column for each measurement."""
    kinds = list(dict.fromkeys(kind for found in headline.modes.values() for kind in found))
    return [_summary_table(kind, headline) for kind in kinds]


def _summary_table(kind: str, headline: Headline) -> ConsoleTable:
    table = ConsoleTable(title=f"held-out probes, {kind} questions")
    table.add_column("metric", no_wrap=True)
    measured = {
        f"{when}, {mode}": found
        for mode, kinds in headline.modes.items()
        for when, found in kinds[kind].items()
        if when in WHEN
    }
    for name in measured:
        table.add_column(name, justify="right")
    table.add_row("n", *(number(found["n"]) for found in measured.values()))
    for metric in SUMMARY:
        values = [number(found[metric]["value"]) for found in measured.values()]
        table.add_row(metric, *values)
    return table


def heldout_tables(record: RunRecord, headline: Headline | None) -> list[Table]:
    """Lay out the held-out metrics of each mode, and the sources of confidence beside."""
    modes = headline.modes if headline else {}
    tables = [
        _metrics(f"All metrics, {kind} questions, {mode} answers", found, CHANGES, _OF_RUN)
        for mode, kinds in modes.items()
        for kind, found in kinds.items()
    ]
    return [*tables, *(_sources(kind, found) for kind, found in record.baselines.items())]


def _sources(kind: str, found: Mapping[str, Mapping[str, float]]) -> Table:
    names = ("n", *_BESIDE)
    return Table(
        f"Sources of confidence, {kind} questions, greedy answers after training",
        ["confidence from", "n", *(TITLES[name] for name in _BESIDE)],
        {source: [number(values[name]) for name in names] for source, values in found.items()},
        few_of(found),
    )


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
    last, named, tables = evaluations[-1], when(evaluations[-1].name), []
    for oracle in own_parts(last.metrics):
        measured = {
            _group_title(n): m for n, m in (oracle["groups"] | oracle["benchmarks"]).items()
        }
        table = measurements("benchmark", _OF_BENCHMARK, measured)
        title = f"Benchmarks, {oracle['kind']} questions, {named}"
        tables += [replace(table, title=title), _baselines(oracle)]
    if len(evaluations) > 1:
        tables += [*_changes(last), _course(evaluations)]
    return [table for table in tables if table.rows]


def _group_title(name: str) -> str:
    return _GROUPS.get(name, name)


def _changes(last: Evaluation) -> list[Table]:
    """Lay out the pooled groups less those of each earlier evaluation that it is compared with."""
    tables = []
    for name, groups in last.metrics["differences"].items():
        named = {_group_title(group): values for group, values in groups.items()}
        table = measurements("benchmark", _OF_BENCHMARK, named, True)
        before = when(name.partition(" - ")[2])
        tables.append(replace(table, title=f"Change since {before}, paired"))
    return tables


def _course(evaluations: Sequence[Evaluation]) -> Table:
    measured = {
        f"{when(evaluation.name)}, {oracle['kind']} questions": oracle["groups"]["all"]
        for evaluation in evaluations
        for oracle in own_parts(evaluation.metrics)
    }
    table = measurements("when", _OF_BENCHMARK, measured)
    return replace(table, title="All benchmarks, in the course of training")


def when(name: str) -> str:
    """Say when an evaluation was made, from its folder's name: ``step_000100`` is step 100."""
    name, comma, kind = name.partition(",")
    if name.startswith("step_"):
        name = f"step {int(name.removeprefix('step_'))}"
    return _WHEN.get(name, name) + comma + kind


def own_parts(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics of the first oracle, for each kind of question."""
    parts = list(metrics["oracles"].values())
    return [part for part in parts if part["oracle"] == parts[0]["oracle"]]
