"""Charts of the run report as inline SVG; their colours are the page's, by class names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from grpo_ao.calibration import bootstrap_intervals, equal_width_bins
from grpo_ao.report.formats import MINUS, number
from grpo_ao.report.headline import Estimate

_BINS = 10
_DRAWS = 500
_BARS = 20
_MOST_POINTS = 400


@dataclass(frozen=True)
class Scale:
    """Maps values between ``low`` and ``high`` to coordinates between ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_chart(
    name: str,
    steps: Sequence[float],
    values: Sequence[float | None],
    alerts: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Draw one metric over steps: every value as a thin line, their running mean as a bold one.

    ``alerts`` are steps with what was said there. The running mean is over a twentieth of the
    steps.
    """
    step_N = np.array(steps, dtype=float)
    value_N = np.array([np.nan if v is None else v for v in values], dtype=float)
    known = np.isfinite(value_N)
    step_N, value_N = step_N[known], value_N[known]
    ticks = _ticks(value_N.min(), value_N.max())
    span = max(steps[-1], steps[0] + 1)
    x, y = Scale(steps[0], span, 42, 312), Scale(ticks[0], ticks[-1], 122, 10)
    parts = [_grid_line(42, 312, y(tick), _short(tick)) for tick in ticks]
    parts += [f'<text class="tick" x="42" y="140">{number(steps[0])}</text>']
    parts += [f'<text class="tick end" x="312" y="140">{number(steps[-1])}</text>']
    for step, message in alerts:
        parts.append(
            f'<g class="alert"><title>{escape(message)}</title>'
            f'<line x1="{x(step):.1f}" x2="{x(step):.1f}" y1="10" y2="122"/>'
            f'<path d="M{x(step):.1f} 14l-5 -9h10z"/></g>'
        )
    window = max(1, len(value_N) // 20)
    parts.append(_path("raw" if window > 1 else "curve", x, y, step_N, value_N))
    if window > 1:
        parts.append(_path("curve", x, y, step_N, running_mean(value_N, window)))
    parts.append('<line class="cursor" x1="-9" x2="-9" y1="10" y2="122"/>')
    label = f"{name} from step {steps[0]} to {steps[-1]}: {number(value_N[0])} to "
    return _svg(320, 146, label + number(value_N[-1]), parts, "line-chart")


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers around an interval; one without a width is widened to reach 0."""
    if high - low < 1e-9:
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
    locator = MaxNLocator(nbins=4, steps=[1, 2, 5, 10], min_n_ticks=2)
    return list(locator.tick_values(low, high))


def running_mean(value_N: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of each value and the up to ``window - 1`` values before it."""
    total = np.cumsum(np.concatenate([[0.0], value_N]))
    stop = np.arange(1, len(value_N) + 1)
    start = np.maximum(stop - window, 0)
    return (total[stop] - total[start]) / (stop - start)


def _path(kind: str, x: Scale, y: Scale, step_N: np.ndarray, value_N: np.ndarray) -> str:
    stride = -(-len(step_N) // _MOST_POINTS)
    chosen = np.unique([*range(0, len(step_N), stride), len(step_N) - 1])
    points = "L".join(f"{x(float(step_N[i])):.1f} {y(float(value_N[i])):.1f}" for i in chosen)
    return f'<path class="{kind}" d="M{points}"/>'


def _short(tick: float) -> str:
    return f"{tick:.3g}".replace("-", MINUS)


def _grid_line(left: float, right: float, y: float, label: str) -> str:
    return (
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick end" x="{left - 5}" y="{y + 3.5:.1f}">{label}</text>'
    )


def reliability_chart(
    view: str,
    kind: str,
    confidence_N: np.ndarray,
    outcome_N: np.ndarray,
    cluster_N: np.ndarray,
) -> Markup:
    """Draw a reliability diagram over a histogram of confidence.

    A disc is one of ten equal-width bins, its area the share of answers, its whisker the 95 %
    bootstrap interval over texts; it links to the bin's answers in the list of answers ``view``.
    ``kind`` (``before`` or ``after``) chooses the colour. A bar of the histogram is filled as far
    as its answers are right.
    """
    x, y = Scale(0, 1, 40, 300), Scale(0, 1, 270, 10)
    parts = [_grid_line(40, 300, y(tick), f"{tick:.1f}") for tick in np.arange(0, 1.01, 0.2)]
    parts += [f'<line class="diagonal" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>']
    parts += _bars(x, confidence_N, outcome_N)
    parts += [
        f'<text class="tick middle" x="{x(tick):.1f}" y="352">{round(100 * tick)}</text>'
        for tick in np.arange(0, 1.01, 0.2)
    ]
    parts += ['<text class="axis middle" x="170" y="370">stated confidence</text>']
    parts += ['<text class="axis middle" transform="translate(9 140) rotate(-90)">right</text>']
    bin_N = equal_width_bins(confidence_N, _BINS)
    intervals = bootstrap_intervals(
        lambda drawn: _bin_means(bin_N[drawn], outcome_N[drawn]), cluster_N, draws=_DRAWS
    )
    for index in np.unique(bin_N):
        inside = bin_N == index
        right = Estimate(float(outcome_N[inside].mean()), *intervals[str(index)])
        parts.append(
            _disc(view, int(index), x, y, confidence_N[inside], right, float(inside.mean()))
        )
    label = f"Reliability diagram, {view}: share of right answers in ten bins of confidence"
    return _svg(310, 376, label, parts, f"reliability {kind}", role="group")


def _bin_means(bin_N: np.ndarray, outcome_N: np.ndarray) -> dict[str, float]:
    """Return the mean outcome of each bin by its number, NaN where the bin is empty."""
    count_B = np.bincount(bin_N, minlength=_BINS)
    total_B = np.bincount(bin_N, weights=outcome_N, minlength=_BINS)
    mean_B = np.divide(total_B, count_B, out=np.full(_BINS, np.nan), where=count_B > 0)
    return {str(index): float(mean) for index, mean in enumerate(mean_B)}


def _bars(x: Scale, confidence_N: np.ndarray, outcome_N: np.ndarray) -> list[str]:
    bar_N = equal_width_bins(confidence_N, _BARS)
    counts = np.bincount(bar_N, minlength=_BARS)
    right = np.bincount(bar_N, weights=outcome_N, minlength=_BARS)
    height = Scale(0, int(counts.max()), 0, 52)
    width = (x.end - x.start) / _BARS
    parts = [f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="338" y2="338"/>']
    for index, (count, score) in enumerate(zip(counts, right, strict=True)):
        left = x(index / _BARS) + 1
        for kind, amount in (("all", count), ("right", score)):
            tall = height(float(amount))
            parts.append(
                f'<rect class="bar {kind}" x="{left:.1f}" y="{338 - tall:.1f}" '
                f'width="{width - 2:.1f}" height="{tall:.1f}"/>'
            )
    return parts


def _disc(
    view: str,
    index: int,
    x: Scale,
    y: Scale,
    confidence_N: np.ndarray,
    right: Estimate,
    share: float,
) -> str:
    mean = float(confidence_N.mean())
    first, last = index * 100 // _BINS, (index + 1) * 100 // _BINS - (index < _BINS - 1)
    what = (
        f"confidence {first} to {last}: {len(confidence_N)} answers, mean confidence "
        f"{100 * mean:.0f}, right {right.value:.2f} [{right.low:.2f}, {right.high:.2f}]"
    )
    return (
        f'<a class="bin" href="#answers" data-view="{escape(view)}" data-low="{first}" '
        f'data-high="{last}" aria-label="Show answers with {what}"><title>{what}</title>'
        f'<circle cx="{x(mean):.1f}" cy="{y(right.value):.1f}" r="{3 + 17 * share**0.5:.1f}"/>'
        f'<line class="whisker" x1="{x(mean):.1f}" x2="{x(mean):.1f}" y1="{y(right.low):.1f}" '
        f'y2="{y(right.high):.1f}"/></a>'
    )


def coverage_chart(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Markup:
    """Draw the share of right answers among the most confident ones, over their share of all.

    ``curves`` holds coverage and risk (``calibration.risk_coverage``) by ``before`` and ``after``.
    """
    x, y = Scale(0, 1, 40, 300), Scale(0, 1, 270, 10)
    parts = [_grid_line(40, 300, y(tick), f"{tick:.1f}") for tick in np.arange(0, 1.01, 0.2)]
    parts += [
        f'<text class="tick middle" x="{x(tick):.1f}" y="285">{tick:.1f}</text>'
        for tick in np.arange(0, 1.01, 0.2)
    ]
    parts += ['<text class="axis middle" x="170" y="303">share of answers given</text>']
    for kind, (coverage_N, risk_N) in curves.items():
        parts.append(f'<g class="{kind}">{_path("curve", x, y, coverage_N, 1 - risk_N)}</g>')
    label = "Share right among the most confident answers, over the share of answers given"
    return _svg(310, 309, label, parts, "coverage")


def whisker_chart(estimates: Sequence[tuple[str, Estimate]]) -> Markup:
    """Draw estimates (named ``before`` or ``after``) with their intervals on one axis."""
    ends = [value for _, e in estimates for value in (e.value, e.low, e.high)]
    known = [value for value in ends if np.isfinite(value)]
    if not known:
        return Markup()
    ticks = _ticks(min(known), max(known))
    x = Scale(ticks[0], ticks[-1], 14, 226)
    height = 18 * len(estimates) + 6
    parts = []
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="2" y2="{height}"/>'
            f'<text class="tick middle" x="{x(tick):.1f}" y="{height + 12}">{_short(tick)}</text>'
        )
    for row, (kind, estimate) in enumerate(estimates):
        if np.isfinite(estimate.value):
            parts.append(_whisker(kind, x, 12 + 18 * row, estimate))
    return _svg(240, height + 16, "", parts, "whiskers")


def _whisker(kind: str, x: Scale, y: float, estimate: Estimate) -> str:
    low, high = (estimate.value if np.isnan(end) else end for end in (estimate.low, estimate.high))
    return (
        f'<g class="{kind}"><line class="whisker" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" '
        f'y2="{y}"/><circle cx="{x(estimate.value):.1f}" cy="{y}" r="4.5"/></g>'
    )


def _svg(
    width: int, height: int, label: str, parts: Sequence[str], kind: str, role: str = "img"
) -> Markup:
    named = f'role="{role}" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" {named}>{"".join(parts)}</svg>'
    )
