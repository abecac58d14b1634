"""Figures of an evaluation: reliability, risk and coverage, layers; PNG and SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from grpo_ao.calibration import risk_coverage
from grpo_ao.measuring.confidences import METHODS, answers_of, stated
from grpo_ao.report.plots import Panel, reliability_diagram, save_figure

Rows = Sequence[Mapping[str, Any]]
# Okabe and Ito's colours, told apart by the colour-blind.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_reliability(path: Path, rows: Mapping[str, Rows]) -> None:
    """Draw each oracle's reliability diagram, side by side."""
    panels = []
    for name, part in rows.items():
        answers = answers_of(part)
        known = answers.stated_N
        panels.append(Panel(name, answers.confidence_N[known], answers.correct_N[known]))
    reliability_diagram(path, panels, outcome="share of right answers", smooth=True)


def draw_risk_coverage(path: Path, rows: Mapping[str, Rows]) -> None:
    """Draw the first oracle's risk-coverage curve of every method, the others' of the stated."""
    figure, axis = plt.subplots(figsize=(5.2, 4.2), layout="constrained")
    main, *others = rows
    curves = {name: answers_of(rows[main], method) for name, method in METHODS.items()}
    curves |= {f"stated confidence, {name}": answers_of(rows[name], stated) for name in others}
    for (name, answers), color in zip(curves.items(), _cycle(len(curves)), strict=True):
        known = answers.stated_N
        if known.any():
            coverage, risk = risk_coverage(answers.confidence_N[known], answers.correct_N[known])
            axis.plot(coverage, risk, label=name, color=color, linewidth=1.5)
    axis.set_xlabel("coverage: share of questions answered, most confident first")
    axis.set_ylabel("risk: share of wrong answers")
    axis.set_xlim(0, 1)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, frameon=False)
    _finish(figure, path)


def draw_layers(path: Path, layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw accuracy, ECE and AUROC at each layer, with intervals, for each oracle."""
    shown = {"accuracy": "accuracy", "ece10": "ECE", "auroc": "AUROC"}
    figure, axes = plt.subplots(1, len(shown), figsize=(9, 3), layout="constrained")
    for axis, (metric, title) in zip(axes, shown.items(), strict=True):
        for shift, (name, color) in enumerate(zip(layers, _cycle(len(layers)), strict=True)):
            x = np.arange(len(layers[name])) + 0.1 * shift
            entries = [m[metric] for m in layers[name].values()]
            y, low, high = (_numbers(entries, key) for key in ("value", "low", "high"))
            axis.errorbar(
                x, y, yerr=[np.maximum(y - low, 0), np.maximum(high - y, 0)], fmt="o-",
                color=color, label=name, capsize=3, linewidth=1.2, markersize=4,
            )  # fmt: skip
        names = list(next(iter(layers.values())))
        axis.set_xticks(range(len(names)), names)
        axis.set_xlabel("layer that is read")
        axis.set_title(title, fontsize=11)
    axes[0].legend(fontsize=8, frameon=False)
    _finish(figure, path)


def _numbers(entries: Sequence[Mapping[str, float | None]], key: str) -> np.ndarray:
    return np.array([np.nan if e[key] is None else e[key] for e in entries], dtype=float)


def _cycle(count: int) -> list[str]:
    return [_COLORS[n % len(_COLORS)] for n in range(count)]


def _finish(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for axis in figure.axes:
        axis.grid(color="#e6e6e6", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
