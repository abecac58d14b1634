"""The run report: one HTML file that shows what a run did, readable without a network.

Everything is computed here and drawn as inline SVG; the page's script only filters the answers,
as the address says, and moves the cursor of the training curves. Texts of a run are data of
strangers: Jinja escapes them in the page, and the script writes them as text.
"""

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from grpo_ao.answer import Answer
from grpo_ao.files import atomic_write_text, finite
from grpo_ao.measuring.metrics import family_of, parted, summary
from grpo_ao.probe import FEW_TEXTS
from grpo_ao.report.browsing import ROLLOUTS, heldout_items, rollout_items, within_budget
from grpo_ao.report.formats import FEW_NOTE, TITLES, Table, few_of, number
from grpo_ao.report.headline import Headline
from grpo_ao.report.meaning import DRAWS, SMALL_FAMILY, known, meaning
from grpo_ao.report.plots import (
    CURVE_LEFT,
    CURVE_WIDTH,
    curve,
    gaps,
    inline_svg,
    page_svg,
    running_mean,
)
from grpo_ao.report.run_record import MODES, WHEN, RunRecord
from grpo_ao.report.tables import benchmark_tables, heldout_tables
from grpo_ao.reward import RewardRule, reward_rule

PAGE = Path(__file__).parent / "template"
Row = dict[str, Any]
# What the warm start is for.
_OF_WARM_START = ("parse_rate", "informativeness")


Group = dict[str, float]
"""The ``summary`` of the answers of one layer or family."""
VIEWS = tuple(f"{when} {mode}" for when in reversed(WHEN) for mode in MODES)
CURVES = {
    "reward": "Reward",
    "informativeness": "Informativeness",
    "brier": "Brier",
    "ece_window": "ECE of the last 2000 answers",
    "auroc_within_window": "AUROC within families, of the last 2000 answers",
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


def page_environment() -> Environment:
    """Return what renders the pages' templates: texts of a run are escaped."""
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "intervals": _intervals}
    environment.globals |= {"few_note": FEW_NOTE, "few_texts": FEW_TEXTS}
    return environment


def render_report(record: RunRecord, headline: Headline | None, draws: int = DRAWS) -> str:
    """Return the page; ``draws`` are those of the bootstrap of what it opens with."""
    script = (PAGE / "report.js").read_text(encoding="utf-8")
    return (
        page_environment()
        .get_template("report.html.jinja")
        .render(
            style=Markup((PAGE / "report.css").read_text(encoding="utf-8")),
            script=Markup(script),
            # The page may fetch nothing and run this script alone, whatever a text of the run says.
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            record=record,
            title=record.folder.resolve().name,
            headline=headline,
            meaning=meaning(
                record.of_mode("greedy"),
                headline.modes.get("greedy", {}) if headline else {},
                record.controls,
                draws,
            ),
            tables=heldout_tables(record, headline),
            breakdowns=_breakdowns(record),
            curves=_curves(record),
            curve_left=CURVE_LEFT,
            curve_width=CURVE_WIDTH,
            warm_start=_warm_start(record),
            benchmarks=benchmark_tables(record.evaluations),
            figures=_figures(record),
            setup=_setup(record),
            configuration=Table(
                "Configuration",
                ["setting", "value"],
                {n: [str(v)] for n, v in record.config.items()},
            ),
            data=finite(_browsable(record)),
        )
    )


def _breakdowns(record: RunRecord) -> list[tuple[Table, Markup]]:
    """Return the last greedy held-out answers by layer and by family, beside the first ones.

    Questions of both kinds are apart in either.
    """
    measured = record.of_mode("greedy")
    if not measured:
        return []
    (first, before), *_, (when, last) = [*measured.items()] * 2
    sizes = Counter(map(family_of, last))

    def family(answer: Answer) -> str:
        name = family_of(answer)
        return name if sizes[name] >= SMALL_FAMILY else f"smaller families, {answer.probe.kind}"

    keys: dict[str, Callable[[Answer], str]] = {
        "Layer": lambda answer: f"layer {answer.probe.shown_layers}, {answer.probe.kind}",
        "Family": family,
    }
    found = []
    for title, key in keys.items():
        groups, earlier = _by_group(last, key), _by_group(before, key)
        if groups:
            rows = {n: {first: earlier.get(n), when: group} for n, group in groups.items()}
            found.append((_table(title, groups), _gaps(title, rows, few_of(groups))))
    return found


def _table(title: str, groups: Mapping[str, Group]) -> Table:
    columns = [title, "right", "confidence", "AUROC", "n"]
    shown = ("informativeness", "confidence_mean", "auroc", "n")
    rows = {name: [number(of[key], 2) for key in shown] for name, of in groups.items()}
    return Table(f"Held-out answers by {title.lower()}", columns, rows, few_of(groups))


def _by_group(answers: Sequence[Answer], key: Callable[[Answer], str]) -> dict[str, Group]:
    """Return the groups of answers with a known confidence, layers from the first on."""
    parts = {name: known(members) for name, members in parted(answers, key).items()}
    ordered = sorted(parts, key=lambda name: (len(name), name))
    return {name: summary(parts[name]) for name in ordered if len(parts[name])}


def _gaps(title: str, rows: Mapping[str, Mapping[str, Group | None]], few: Sequence[str]) -> Markup:
    drawn = {
        name: {w: (g["informativeness"], g["confidence_mean"]) for w, g in groups.items() if g}
        for name, groups in rows.items()
    }
    return inline_svg(gaps(drawn, few), f"Right and confident by {title.lower()}")


def _intervals(cell: str) -> Markup:
    """Set a cell's brackets apart from what stands before them."""
    marked = re.sub(r"(\[[^\]]*\])", r'<span class="interval">\1</span>', str(escape(cell)))
    return Markup(marked)


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
    before, after = record.warm_start["before"], record.warm_start["after"]
    rows = {TITLES[n]: [number(before[n]), number(after[n])] for n in _OF_WARM_START}
    return {
        "table": Table("Warm start", ["metric", "before", "after"], rows),
        "chart": _curve("Loss", steps, losses, {}),
        "steps": len(losses),
        "last_loss": float(smooth[-1]),
    }


def _setup(record: RunRecord) -> Table:
    """Lay out what was run, on what, by whom it was graded."""
    run, config = record.run, record.config
    judge = {name: value for name, value in run.get("judge", {}).items() if name != "judge"}
    facts = {
        "Base model": config["model"],
        "Subject": config.get("subject_lora") or "the base model",
        "Oracle": config["oracle_lora_path"],
        "Questions": _listed(config["questions"], run["data"]),
        "Judge": _listed(config["judge"], judge),
        "Seed": run["seed"],
        "Started": run["started"],
        "Git commit": run["git_commit"] or "unknown",
        "Versions": _listed(f"Python {run['python']}", run["versions"]),
        "Command": " ".join(run["command"]),
    }
    return Table("Setup", ["fact", "value"], {name: [str(value)] for name, value in facts.items()})


def _listed(first: str, others: Mapping[str, Any]) -> str:
    return ", ".join([first, *(f"{name} {value}" for name, value in others.items())])


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
