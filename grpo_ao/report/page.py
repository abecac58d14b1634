"""The run report: one HTML file that shows what a run did, readable without a network.

Everything is computed here and drawn as inline SVG; the page's script only filters the answers,
as the address says, and moves the cursor of the training curves. Texts of a run are data of
strangers: Jinja escapes them in the page, and the script writes them as text.
"""

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from grpo_ao.answer import Answer
from grpo_ao.calibration import auroc, risk_coverage
from grpo_ao.files import atomic_write_text, finite
from grpo_ao.measuring.metrics import Columns, parted
from grpo_ao.report.answers import ROLLOUTS, heldout_items, rollout_items, within_budget
from grpo_ao.report.formats import number, signed
from grpo_ao.report.headline import METRICS, Headline, MetricLine
from grpo_ao.report.plots import (
    CURVE_LEFT,
    CURVE_WIDTH,
    Bin,
    Panel,
    curve,
    estimates,
    gaps,
    inline_svg,
    page_svg,
    reliability_diagram,
    risk_coverage_diagram,
    running_mean,
)
from grpo_ao.report.run_record import MODES, WHEN, RunRecord
from grpo_ao.report.tables import benchmark_tables
from grpo_ao.reward import RewardRule, reward_rule

PAGE = Path(__file__).parent / "template"
Row = dict[str, Any]
# Families with fewer answers are shown together.
_LEAST = 20
VIEWS = ("after sampled", "after greedy", "before sampled", "before greedy")
HEADLINE = ("ece10", "auroc", "brier", "informativeness")
CURVES = {
    "reward": "Reward",
    "informativeness": "Informativeness",
    "brier": "Brier",
    "ece_window": "ECE of the last 2000 answers",
    "auroc": "AUROC of the step",
    "confidence": "Confidence, mean",
    "confidence_std": "Confidence, standard deviation",
    "advantage_std": "Advantage, standard deviation",
    "kl": "KL to the reference, nats a token",
    "sampling_gap": "Sampling gap, nats a token",
    "parse_rate": "Parse rate",
    "unscored": "Share without a grade",
    "answer_length": "Answer length, words",
}
# The curve on which an alert is marked; one that is not named here is marked on every curve.
ALERT_CURVE = {
    "confidence_collapse": "confidence_std",
    "no_advantage": "advantage_std",
    "parse_rate": "parse_rate",
    "unscored": "unscored",
    "short_answers": "answer_length",
    "kl_explodes": "kl",
    "sampling_gap": "sampling_gap",
}


def write_report(record: RunRecord, headline: Headline | None) -> Path:
    """Write ``report.html`` into a run's folder and return its path.

    Works on a run that is finished, under way or was killed: what there is not is left out.
    """
    path = record.folder / "report.html"
    atomic_write_text(path, render_report(record, headline))
    return path


def render_report(record: RunRecord, headline: Headline | None) -> str:
    """Return the page."""
    script = (PAGE / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed}
    return environment.get_template("report.html.jinja").render(
        style=Markup((PAGE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # The page may fetch nothing and run this script alone, whatever a text of the run says.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        record=record,
        title=record.folder.resolve().name,
        metrics=METRICS,
        headline=headline,
        tiles=_tiles(headline) if headline else [],
        diagrams=_diagrams(record),
        breakdowns=_breakdowns(record),
        curves=_curves(record),
        curve_left=CURVE_LEFT,
        curve_width=CURVE_WIDTH,
        warm_start=_warm_start(record),
        evaluations=benchmark_tables(record.evaluations),
        figures=_figures(record),
        data=finite(_browsable(record)),
    )


def _tiles(headline: Headline) -> list[tuple[MetricLine, Markup]]:
    """Return the main metrics of the sampled answers, each with its chart."""
    lines = {line.metric: line for line in next(iter(headline.modes.values()))}
    return [(lines[metric], _whiskers(lines[metric])) for metric in HEADLINE]


def _whiskers(line: MetricLine) -> Markup:
    named = {"before": line.before, "after": line.after}
    rows = {when: {when: e} for when, e in named.items() if e and math.isfinite(e.value)}
    return inline_svg(estimates({"": rows}), METRICS[line.metric][0]) if rows else Markup()


def _diagrams(record: RunRecord) -> dict[str, dict[str, Markup]]:
    """Return, by mode, the reliability diagrams by title, and the one of risk and coverage."""
    found: dict[str, dict[str, Markup]] = {}
    for mode in MODES:
        diagrams, curves = {}, {}
        for when in WHEN:
            known = _known(record.heldout.get(f"{when} {mode}", []))
            if known:
                columns = Columns.of(known)
                (confidence, outcome), texts = columns.known, columns.context_N
                panel = Panel(f"{when} training, {mode}", confidence, outcome, texts, tone=when)
                diagrams[when] = _reliability(panel, f"{when} {mode}")
                curves[when] = risk_coverage(confidence, outcome)
        if diagrams:
            label = f"Risk and coverage, {mode} answers"
            found[mode] = diagrams | {"risk": inline_svg(risk_coverage_diagram(curves), label)}
    return found


def _reliability(panel: Panel, view: str) -> Markup:
    """Draw a measurement; its bins lead to their answers, as the page's script reads addresses."""

    def address(part: Bin) -> str:
        return f"#answers&view={quote_plus(view)}&low={part.low}&high={part.high}"

    figure = reliability_diagram([replace(panel, link=address)], "right")
    words = {address(part): str(part) for part in panel.bins}
    return inline_svg(figure, f"Reliability {panel.title}", words)


def _known(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers of which confidence and informativeness are known."""
    return [a for a in answers if a.confidence is not None and a.informativeness is not None]


def _breakdowns(record: RunRecord) -> list[dict[str, Any]]:
    """Return the held-out answers of the last sampled measurement by family and by layer."""
    names = [name for name in record.heldout if name.endswith("sampled")]
    if not names:
        return []
    before, last = record.heldout[names[0]], record.heldout[names[-1]]
    sizes = Counter(_family(answer) for answer in last)
    keys: dict[str, Callable[[Answer], str]] = {
        "Layer": lambda answer: str(answer.probe.layer),
        "Family": lambda answer: (
            _family(answer) if sizes[_family(answer)] >= _LEAST else "smaller families"
        ),
    }
    tables = []
    for title, key in keys.items():
        earlier = _by_group(before, key) if len(names) > 1 else {}
        lines = [{"name": n, "before": earlier.get(n)} | g for n, g in _by_group(last, key).items()]
        order = {"Layer": lambda line: line["layer"], "Family": lambda line: -line["right"]}
        lines.sort(key=order[title])
        figure = _gaps(title, names[-1].split()[0], lines)
        tables.append({"title": title, "figure": figure, "lines": lines})
    return tables


def _gaps(title: str, when: str, lines: Sequence[Row]) -> Markup:
    measured = {line["name"]: {"before": line["before"], when: line} for line in lines}
    rows = {
        name: {w: (g["right"], g["confidence"]) for w, g in groups.items() if g}
        for name, groups in measured.items()
    }
    return inline_svg(gaps(rows), f"Right and confident by {title.lower()}") if rows else Markup()


def _family(answer: Answer) -> str:
    """Name an answer's family with its kind; a family that is a kind is named once."""
    probe = answer.probe
    return probe.kind if probe.family == probe.kind else f"{probe.family}, {probe.kind}"


def _by_group(answers: Sequence[Answer], key: Callable[[Answer], str]) -> dict[str, Row]:
    found = {}
    for name, members in parted(_known(answers), key).items():
        confidence, outcome = Columns.of(members).known
        found[name] = {
            "n": len(members),
            "layer": members[0].probe.layer,
            "right": float(outcome.mean()),
            "confidence": float(confidence.mean()),
            "auroc": auroc(confidence, outcome >= 0.5),
        }
    return found


def _curves(record: RunRecord) -> list[dict[str, Any]]:
    """Return the charts of the metrics that the run has recorded, the monitored ones first."""
    known = [name for step in record.steps[-1:] for name in step if name != "step"]
    names = [*(n for n in CURVES if n in known), *(n for n in known if n not in CURVES)]
    steps = [row["step"] for row in record.steps]
    curves = []
    for name in names:
        values = [row.get(name) for row in record.steps]
        if all(value is None for value in values):
            continue
        label = CURVES.get(name, name.replace("_", " "))
        last = next(value for value in reversed(values) if value is not None)
        chart = _curve(label, steps, values, _marks(record, name))
        curves.append(
            {"name": name, "label": label, "chart": chart, "last": last, "main": name in CURVES}
        )
    return curves


def _marks(record: RunRecord, name: str) -> dict[str, Row]:
    """Return the alerts to be marked on a curve, by their address in the list of alerts."""
    return {
        f"#alert-{number}": alert
        for number, alert in enumerate(record.alerts, start=1)
        if ALERT_CURVE.get(alert["alert"], name) == name
    }


def _curve(
    label: str, steps: Sequence[int], values: Sequence[float | None], marks: dict[str, Row]
) -> Markup:
    known = [value for value in values if value is not None]
    described = (
        f"{label}, step {steps[0]} to {steps[-1]}: {number(known[0])} to {number(known[-1])}"
    )
    figure = curve(steps, values, {address: alert["step"] for address, alert in marks.items()})
    words = {address: f"step {a['step']}: {a['message']}" for address, a in marks.items()}
    return inline_svg(figure, described, words)


def _warm_start(record: RunRecord) -> dict[str, Any] | None:
    if not record.warm_start:
        return None
    losses = record.warm_start["losses"]
    steps = list(range(1, len(losses) + 1))
    smooth = running_mean(np.array(losses), max(1, len(losses) // 20))
    return {
        "before": record.warm_start["before"],
        "after": record.warm_start["after"],
        "chart": _curve("Loss", steps, losses, {}),
        "steps": len(losses),
        "last_loss": float(smooth[-1]),
    }


def _figures(record: RunRecord) -> dict[str, Markup]:
    """Return the figures of the last evaluation by title."""
    paths = record.evaluations[-1].figures if record.evaluations else []
    titles = {path: path.stem.replace("_", " ") for path in paths}
    return {t: page_svg(p.read_text(encoding="utf-8"), t) for p, t in titles.items()}


def _rule(config: dict[str, Any]) -> RewardRule:
    return reward_rule(config["calibration_lambda"], config.get("reward"))


def _browsable(record: RunRecord) -> dict[str, Any]:
    """Return what the page's script reads: answers to browse, and the curves' values."""
    heldout = heldout_items(record.heldout, _rule(record.config))
    rollouts = rollout_items(record.rollouts)
    shown = within_budget(heldout), within_budget(rollouts)
    views = [*sorted(record.heldout, key=VIEWS.index), *([ROLLOUTS] if rollouts else [])]
    stride = math.ceil(len(record.steps) / 2000) or 1
    rows = record.steps[::stride]
    names = [name for step in record.steps[-1:] for name in step if name != "step"]
    return {
        "views": views,
        "items": [*shown[0], *shown[1]],
        "totals": {"heldout": len(heldout), "rollouts": len(rollouts)},
        "steps": [row["step"] for row in rows],
        "curves": {name: [_rounded(row.get(name)) for row in rows] for name in names},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
