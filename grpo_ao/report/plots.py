"""All figures, by matplotlib: saved as PNG and SVG, or set into the report as inline SVG.

Drawing functions return a figure, which goes out by ``save`` or by ``inline_svg``. Colours are
``TONES``; each is a CSS variable of the report too, so that a figure there is light or dark as the
page is.
"""

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from cycler import cycler
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from grpo_ao.calibration import Estimate, bootstrap_intervals, ece, equal_width_bins
from grpo_ao.files import written_whole
from grpo_ao.probe import FEW_TEXTS

TONES = {
    "after": "#0b64a8",
    "before": "#a65a00",
    "warm start": "#00795a",
    "fourth": "#a8437f",
    "fifth": "#7a6a00",
    "sixth": "#3f8fc4",
    "alert": "#b3261e",
    "ink": "#1c2330",
    "soft": "#566072",
    "few": "#8e97a3",
    "grid": "#e2e5e9",
    "paper": "#ffffff",
}
SERIES = ("after", "before", "warm start", "fourth", "fifth", "sixth")
# Where a curve's axes lie in its figure, as fractions of its width; the report's cursor needs them.
CURVE_LEFT, CURVE_WIDTH = 0.14, 0.84
_BINS, _BARS = 10, 20
_DRAWS = 500
_MOST_POINTS = 300
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.titlesize": 10,
    "text.color": TONES["ink"],
    "axes.labelcolor": TONES["soft"],
    "xtick.color": TONES["soft"],
    "ytick.color": TONES["soft"],
    "axes.edgecolor": TONES["grid"],
    "grid.color": TONES["grid"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=[TONES[name] for name in SERIES]),
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


# The two ways out


def save(figure: Figure, path: Path) -> None:
    """Write PNG and SVG beside each other, each as a whole: a reader may look meanwhile."""
    for suffix in (".png", ".svg"):
        with written_whole(path.with_suffix(suffix)) as unfinished, rc_context(_STYLE):
            figure.savefig(unfinished, dpi=150)


def inline_svg(figure: Figure, label: str, tooltips: Mapping[str, str] | None = None) -> Markup:
    """Return the figure as an SVG element in the report's colours.

    ``label`` says what it shows to those who do not see it, and is unlike the page's other labels.
    ``tooltips`` holds the words of addresses that parts of the figure link to.
    """
    file = io.StringIO()
    # Ids inside of the figure derive from the salt.
    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": label}
    with rc_context(style):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return page_svg(file.getvalue(), label, tooltips)


def page_svg(svg: str, label: str, tooltips: Mapping[str, str] | None = None) -> Markup:
    """Turn an SVG file made by ``save`` into an element for the report: see ``inline_svg``."""
    tooltips = tooltips or {}
    root = ElementTree.fromstring(svg)
    for name in ("metadata", "defs"):  # the first defs are a style sheet for all of the page
        root.remove(root.find(f"{{{_SVG}}}{name}"))  # pyright: ignore[reportArgumentType]
    # Letters are no larger than the page's, and shrink with the figure on a narrow screen.
    widest = float(root.attrib["width"].removesuffix("pt")) * 1.45
    for name in ("width", "height", "version"):
        del root.attrib[name]
    root.set("style", f"max-width: {widest:.0f}px")
    root.attrib |= {"role": "group" if tooltips else "img", "aria-label": label}
    for link in root.iter(f"{{{_SVG}}}a"):
        del link.attrib["target"]
        words = tooltips[link.attrib[f"{{{_XLINK}}}href"]]
        link.set("aria-label", words)
        title = ElementTree.Element(f"{{{_SVG}}}title")
        title.text = words
        link.insert(0, title)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    text = ElementTree.tostring(root, encoding="unicode")
    for name, color in TONES.items():
        text = text.replace(color, f"var(--{name.replace(' ', '-')})")
    return Markup(text)


# Reliability


@dataclass(frozen=True)
class Bin:
    """Answers whose confidence lies in one of ten equal-width bins.

    ``low`` and ``high`` are its ends in whole per cents, as the tag has them; ``texts`` counts what
    its ``count`` answers are about, ``share`` is their part of all answers, ``outcome`` their mean
    with its interval over texts.
    """

    low: int
    high: int
    count: int
    texts: int
    share: float
    confidence: float
    outcome: Estimate

    def __str__(self) -> str:
        mean = self.outcome
        return (
            f"confidence {self.low} to {self.high}: {self.count} answers, mean confidence "
            f"{100 * self.confidence:.0f}, right {mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"
        )


@dataclass(frozen=True)
class Panel:
    """One measurement: confidences and outcomes in [0, 1].

    ``cluster_N`` names each answer's text, the unit of the bootstrap; without it the bins have no
    intervals. ``link`` gives the address that a bin's disc leads to.
    """

    title: str
    confidence_N: np.ndarray
    outcome_N: np.ndarray
    cluster_N: np.ndarray | None = None
    tone: str = "after"
    link: Callable[[Bin], str] | None = None

    @cached_property
    def bins(self) -> list[Bin]:
        """The bins that hold answers, from the least confident on."""
        bin_N = equal_width_bins(self.confidence_N, _BINS)
        intervals = self._intervals(bin_N)
        return [self._bin(index, bin_N == index, intervals) for index in np.unique(bin_N).tolist()]

    def _bin(
        self, index: int, inside_N: np.ndarray, intervals: Mapping[str, tuple[float, float]]
    ) -> Bin:
        width, text_N = 100 // _BINS, self.cluster_N
        count = int(inside_N.sum())
        return Bin(
            low=index * width,
            high=(index + 1) * width - (index < _BINS - 1),
            count=count,
            texts=count if text_N is None else len(np.unique(text_N[inside_N])),
            share=float(inside_N.mean()),
            confidence=float(self.confidence_N[inside_N].mean()),
            outcome=Estimate(float(self.outcome_N[inside_N].mean()), *intervals[str(index)]),
        )

    def _intervals(self, bin_N: np.ndarray) -> dict[str, tuple[float, float]]:
        if self.cluster_N is None:
            return {str(index): (np.nan, np.nan) for index in range(_BINS)}
        return bootstrap_intervals(
            lambda drawn: _bin_means(bin_N[drawn], self.outcome_N[drawn]),
            self.cluster_N,
            draws=_DRAWS,
        )


def _bin_means(bin_N: np.ndarray, outcome_N: np.ndarray) -> dict[str, float]:
    """Return the mean outcome of each bin by its number, NaN where the bin is empty."""
    count_B = np.bincount(bin_N, minlength=_BINS)
    total_B = np.bincount(bin_N, weights=outcome_N, minlength=_BINS)
    mean_B = np.divide(total_B, count_B, out=np.full(_BINS, np.nan), where=count_B > 0)
    return {str(index): float(mean) for index, mean in enumerate(mean_B)}


@rc_context(_STYLE)
def reliability_diagram(
    panels: Sequence[Panel], outcome: str = "informativeness", smooth: bool = False
) -> Figure:
    """Draw panels side by side, histograms of confidence below.

    A disc is a bin: its mean confidence and mean outcome, its area the share of answers in it, its
    whisker the 95 % interval; those of few texts are grey, and the line leaves them out. A bar of
    the histogram is dark as far as its answers are right. A panel without answers, of an oracle
    that does not know the tag, says so. ``smooth`` adds the kernel regression behind smooth ECE
    with its 95 % band (relplot; Blasiok, Nakkiran, arXiv 2309.12236).
    """
    figure = Figure(figsize=(3.7 * len(panels), 4.7), layout="constrained")
    axes = figure.subplots(2, len(panels), height_ratios=(4, 1), sharex=True, squeeze=False)
    for column, panel in enumerate(panels):
        if smooth and len(panel.confidence_N):
            _draw_smooth(axes[0, column], panel)
        _draw_bins(axes[0, column], panel)
        _draw_histogram(axes[1, column], panel)
    axes[0, 0].set_ylabel(outcome)
    axes[1, 0].set_ylabel("share")
    return figure


def _draw_bins(axis: Axes, panel: Panel) -> None:
    axis.plot([0, 1], [0, 1], color=TONES["soft"], linewidth=1, linestyle="--")
    label = "no confidence was stated"
    if len(panel.confidence_N):
        _draw_discs(axis, panel)
        error = ece(panel.confidence_N, panel.outcome_N)
        label = f"ECE {error:.3f}\nn {len(panel.confidence_N)}"
    # Above the diagonal, unless discs lie there.
    free = not any(b.confidence < 0.4 and b.outcome.value > 0.7 for b in panel.bins)
    x, y, across, up = (0.04, 0.96, "left", "top") if free else (0.96, 0.04, "right", "bottom")
    axis.text(x, y, label, transform=axis.transAxes, ha=across, va=up)
    axis.set_title(panel.title)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.set_aspect("equal")


def _draw_discs(axis: Axes, panel: Panel) -> None:
    bins, tone = panel.bins, TONES[panel.tone]
    x, y = [b.confidence for b in bins], [b.outcome.value for b in bins]
    many = [b for b in bins if b.texts >= FEW_TEXTS]
    axis.plot(
        [b.confidence for b in many], [b.outcome.value for b in many], color=tone, linewidth=1
    )
    color = [tone if b in many else TONES["few"] for b in bins]
    axis.vlines(x, [b.outcome.low for b in bins], [b.outcome.high for b in bins], color=color)
    areas = [12 + 500 * b.share for b in bins]
    discs = axis.scatter(x, y, s=areas, color=color, alpha=0.7, edgecolors=TONES["paper"], zorder=3)
    if panel.link:
        discs.set_urls([panel.link(b) for b in bins])


def _draw_smooth(axis: Axes, panel: Panel) -> None:
    from relplot import prepare_rel_diagram  # slow to import, and not needed in training

    state = np.random.get_state()
    np.random.seed(0)  # the band is a bootstrap by numpy's global generator
    curve = prepare_rel_diagram(panel.confidence_N, panel.outcome_N, report_CE_std=False)
    np.random.set_state(state)
    # Beyond the confidences that occur the regression is an extrapolation.
    low, high = panel.confidence_N.min(), panel.confidence_N.max()
    inside = (curve["mesh"] >= low) & (curve["mesh"] <= high)
    x, band = curve["mesh"][inside], (curve["lower"][inside], curve["upper"][inside])
    axis.fill_between(x, *band, color=TONES["before"], alpha=0.2, linewidth=0)
    axis.plot(x, curve["mu"][inside], color=TONES["before"])


def _draw_histogram(axis: Axes, panel: Panel) -> None:
    bar_N = equal_width_bins(panel.confidence_N, _BARS)
    total = max(1, len(bar_N))
    left_B, color = np.arange(_BARS) / _BARS, TONES[panel.tone]
    for weight_N, alpha in ((np.ones(len(bar_N)), 0.3), (panel.outcome_N, 0.8)):
        height_B = np.bincount(bar_N, weights=weight_N, minlength=_BARS) / total
        axis.bar(left_B, height_B, width=0.8 / _BARS, align="edge", color=color, alpha=alpha)
    axis.set_xlabel("confidence")


# Curves


@rc_context(_STYLE)
def risk_coverage_diagram(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draw coverage and risk (``calibration.risk_coverage``) of each named curve."""
    figure = Figure(figsize=(4.6, 3.9), layout="constrained")
    axis = figure.subplots()
    for (name, (coverage_N, risk_N)), color in zip(curves.items(), _colors(curves), strict=True):
        axis.plot(coverage_N, risk_N, label=name, color=color)
    axis.set_xlabel("coverage: share of questions answered, most confident first")
    axis.set_ylabel("risk: share of wrong answers")
    axis.set_xlim(0, 1)
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


def _colors(names: Sequence[str] | Mapping[str, object]) -> list[str]:
    """Return each name's colour: its own tone, or the next of those for what is compared."""
    others = cycle(SERIES)
    return [TONES[name if name in TONES else next(others)] for name in names]


@rc_context(_STYLE)
def curve(
    steps: Sequence[float], values: Sequence[float | None], alerts: Mapping[str, float]
) -> Figure:
    """Draw one metric over steps: every value thin, the mean of a twentieth of the steps bold.

    ``alerts`` are the steps of alerts, by the address that their mark links to.
    """
    figure = Figure(figsize=(3.3, 1.5))
    axis = figure.add_axes((CURVE_LEFT, 0.14, CURVE_WIDTH, 0.8))
    step_N = np.array(steps, dtype=float)
    value_N = np.array([np.nan if v is None else v for v in values], dtype=float)
    known = np.isfinite(value_N)
    step_N, value_N = step_N[known], value_N[known]
    window = max(1, len(value_N) // 20)
    mean_N, color = running_mean(value_N, window), TONES["after"]
    chosen = _thinned(len(value_N))
    if window > 1:
        axis.plot(step_N[chosen], value_N[chosen], color=color, alpha=0.4, linewidth=0.7)
    axis.plot(step_N[chosen], mean_N[chosen], color=color)
    for address, step in alerts.items():
        axis.axvline(step, color=TONES["alert"], linestyle=":", url=address)
        top = axis.get_xaxis_transform()
        axis.plot(step, 1, "v", color=TONES["alert"], transform=top, clip_on=False, url=address)
    axis.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(4))
    axis.ticklabel_format(axis="y", useOffset=False)
    if np.ptp(value_N) < 1e-9:
        axis.set(ylim=(value_N[0] - 0.5, value_N[0] + 0.5), yticks=value_N[:1])
    return figure


def running_mean(value_N: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of each value and the up to ``window - 1`` values before it."""
    total = np.cumsum(np.concatenate([[0.0], value_N]))
    stop = np.arange(1, len(value_N) + 1)
    start = np.maximum(stop - window, 0)
    return (total[stop] - total[start]) / (stop - start)


def _thinned(count: int) -> np.ndarray:
    """Return the indices of a curve's points that are drawn, the last among them."""
    return np.unique([*range(0, count, -(-count // _MOST_POINTS)), count - 1])


# Rows of estimates


@rc_context(_STYLE)
def estimates(
    rows: Mapping[str, Mapping[str, Estimate]],
    title: str = "",
    reference: float | None = None,
    few: Collection[str] = (),
) -> Figure:
    """Draw rows of estimates with their intervals, of named series.

    ``reference`` is a value that all of them are to be compared with; rows in ``few`` are grey.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    height = 0.45 + len(rows) * max(0.22, 0.13 * len(series))
    figure = Figure(figsize=(3.3, height), layout="constrained")
    axis = figure.subplots()
    for place, (name, own) in enumerate(zip(series, _colors(series), strict=True)):
        shift = 0.6 * ((place + 0.5) / len(series) - 0.5)
        for y, (row, values) in enumerate(rows.items()):
            if name in values:
                color, (value, low, high) = TONES["few"] if row in few else own, values[name]
                axis.hlines(y + shift, low, high, color=color)
                axis.plot(value, y + shift, "o", color=color, markersize=5)
    if reference is not None:
        axis.axvline(reference, color=TONES["soft"], linestyle="--", linewidth=1)
    axis.set_title(title)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    _name_rows(axis, list(rows))
    return figure


@rc_context(_STYLE)
def layer_curves(panels: Mapping[str, Mapping[str, Mapping[int, Estimate]]]) -> Figure:
    """Draw estimates with their intervals over layers: panels side by side, of named series."""
    series = list(next(iter(panels.values())))
    figure = Figure(figsize=(3.3 * len(panels), 2.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, part) in zip(axes, panels.items(), strict=True):
        for color, (name, at) in zip(_colors(series), part.items(), strict=True):
            layers = sorted(at)
            values, low, high = (
                [getattr(at[layer], end) for layer in layers] for end in ("value", "low", "high")
            )
            axis.vlines(layers, low, high, color=color, alpha=0.5)
            axis.plot(layers, values, "o-", color=color, markersize=4, label=name)
        every = [layer for at in part.values() for layer in at]
        axis.set(title=title, xlabel="layer", xlim=(min(every) - 0.5, max(every) + 0.5))
        axis.xaxis.set_major_locator(FixedLocator(sorted(set(every)), nbins=8))
    if len(series) > 1:
        axes[0].legend()
    return figure


@rc_context(_STYLE)
def gaps(
    rows: Mapping[str, Mapping[str, tuple[float, float]]], few: Collection[str] = ()
) -> Figure:
    """Draw, for each row and each series in it, share right (full) and mean confidence (open).

    Rows in ``few`` are grey.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    figure = Figure(figsize=(3.3, 0.45 + 0.3 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for y, (named, row) in enumerate(rows.items()):
        for place, (name, own) in enumerate(zip(series, _colors(series), strict=True)):
            if name in row:
                color = TONES["few"] if named in few else own
                height = y + 0.5 * ((place + 0.5) / len(series) - 0.5)
                axis.plot(row[name], [height] * 2, color=color)
                axis.plot(row[name][0], height, "o", color=color, markersize=5)
                axis.plot(row[name][1], height, "o", color=color, markersize=5, mfc=TONES["paper"])
    axis.set_xlim(-0.02, 1.02)
    _name_rows(axis, list(rows))
    return figure


def _name_rows(axis: Axes, rows: Sequence[str]) -> None:
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    axis.yaxis.set_minor_locator(NullLocator())
