"""Figures: reliability diagrams."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpo_ao.calibration import auroc, ece, equal_width_bins

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#8a8a8a"
_BINS = 10


@dataclass(frozen=True)
class Panel:
    """One measurement: a title, confidences and outcomes in [0, 1]."""

    title: str
    confidence_N: np.ndarray
    outcome_N: np.ndarray


def reliability_diagram(
    path: Path, panels: Sequence[Panel], outcome: str = "informativeness", smooth: bool = False
) -> None:
    """Draw panels side by side, histograms of confidence below; write PNG and SVG.

    A point is one of ten equal-width bins: its mean confidence and mean outcome, its area the
    share of answers in it. A panel without answers, of an oracle that does not know the tag, says
    so. ``smooth`` adds the kernel regression behind smooth ECE with its 95 % band (relplot;
    Blasiok, Nakkiran, arXiv 2309.12236).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(
        2,
        len(panels),
        figsize=(4.2 * len(panels), 5.2),
        height_ratios=(4, 1),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for column, panel in enumerate(panels):
        if smooth and len(panel.confidence_N):
            _draw_smooth(axes[0, column], panel)
        _draw_bins(axes[0, column], panel)
        _draw_histogram(axes[1, column], panel)
    axes[0, 0].set_ylabel(outcome)
    axes[1, 0].set_ylabel("share")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write PNG and SVG as whole files: a reader may look while a run replaces them."""
    for suffix in (".png", ".svg"):
        unfinished = path.with_name(f".{path.stem}.{os.getpid()}{suffix}")
        figure.savefig(unfinished, dpi=150)
        unfinished.replace(path.with_suffix(suffix))
    plt.close(figure)


def _draw_bins(axis: Axes, panel: Panel) -> None:
    axis.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--")
    label = "no confidence was stated"
    if len(panel.confidence_N):
        _draw_points(axis, panel)
        ece10 = ece(panel.confidence_N, panel.outcome_N)
        area = auroc(panel.confidence_N, panel.outcome_N >= 0.5)
        label = f"ECE {ece10:.3f}\nAUROC {area:.3f}\nn {len(panel.confidence_N)}"
    axis.text(0.04, 0.96, label, transform=axis.transAxes, va="top", fontsize=9)
    axis.set_title(panel.title, fontsize=11)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.set_aspect("equal")
    axis.grid(color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)


def _draw_points(axis: Axes, panel: Panel) -> None:
    bin_N = equal_width_bins(panel.confidence_N, _BINS)
    points = []
    for index in np.unique(bin_N):
        inside = bin_N == index
        points.append(
            (panel.confidence_N[inside].mean(), panel.outcome_N[inside].mean(), inside.mean())
        )
    x, y, share = np.array(points).T
    axis.plot(x, y, color=_BLUE, linewidth=1.5)
    axis.scatter(x, y, s=12 + 500 * share, color=_BLUE, alpha=0.75, edgecolors="white", zorder=3)


def _draw_smooth(axis: Axes, panel: Panel) -> None:
    from relplot import prepare_rel_diagram  # slow to import, and not needed in training

    state = np.random.get_state()
    np.random.seed(0)  # the band is a bootstrap by numpy's global generator
    curve = prepare_rel_diagram(panel.confidence_N, panel.outcome_N, report_CE_std=False)
    np.random.set_state(state)
    # Beyond the confidences that occur the regression is an extrapolation.
    low, high = panel.confidence_N.min(), panel.confidence_N.max()
    inside = (curve["mesh"] >= low) & (curve["mesh"] <= high)
    x, y = curve["mesh"][inside], curve["mu"][inside]
    axis.fill_between(
        x, curve["lower"][inside], curve["upper"][inside], color=_ORANGE, alpha=0.2, linewidth=0
    )
    axis.plot(x, y, color=_ORANGE, linewidth=1.5)


def _draw_histogram(axis: Axes, panel: Panel) -> None:
    weights = np.full(len(panel.confidence_N), 1 / max(1, len(panel.confidence_N)))
    axis.hist(panel.confidence_N, bins=20, range=(0, 1), weights=weights, color=_BLUE, alpha=0.75)
    axis.set_xlabel("stated confidence")
    axis.spines[["top", "right"]].set_visible(False)
