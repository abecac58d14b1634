"""Which interval of a calibration error is right: ``python -m benchmarks.calibration_error``.

Draws stated confidences and outcomes whose true error is known, many times, and counts how often
each estimator's 95 % interval holds its own true value. Prints the tables of
docs/measurements/calibration_error.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tyro

from grpo_ao.calibration import calibration_error, ece, equal_width_bins, smooth_ece

LEVELS = np.arange(101) / 100
_BINS = equal_width_bins(LEVELS, 10)[:, None] == np.arange(10)
ERRORS = (0.0, 0.015, 0.035, 0.1)
ITEMS = (250, 2250)
# Where a forecaster of the second kind is too sure.
_SURE = 0.8
_POPULATION = 200_000


@dataclass(frozen=True)
class Settings:
    """How long to simulate."""

    repetitions: int = 1000
    """Data sets of each setting."""
    draws: int = 500
    """Bootstrap draws of a data set."""
    smooth_repetitions: int = 30
    """The same two for the smooth ECE, which takes 10 ms each time."""
    smooth_draws: int = 30
    seed: int = 0


@dataclass(frozen=True)
class Forecaster:
    """How often each level is stated, and how often an answer stated with it is right."""

    share_L: np.ndarray
    right_L: np.ndarray

    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the confidences and outcomes of ``n`` answers."""
        level_N = rng.choice(len(LEVELS), size=n, p=self.share_L)
        return LEVELS[level_N], (rng.random(n) < self.right_L[level_N]).astype(float)

    def truth(self, metric: Callable[[np.ndarray, np.ndarray], float]) -> float:
        """Return a metric of so many answers that chance plays no part."""
        level_N = np.repeat(np.arange(101), np.round(self.share_L * _POPULATION).astype(int))
        return metric(LEVELS[level_N], self.right_L[level_N])


def stated_shares() -> np.ndarray:
    """Return a distribution of levels that leans to the sure side, from .15 to .95."""
    density_L = LEVELS**4 * (1 - LEVELS) * ((LEVELS >= 0.15) & (LEVELS <= 0.95))
    return density_L / density_L.sum()


def too_sure(error: float, everywhere: bool) -> Forecaster:
    """Return a forecaster that states too much, at every level or from .8 on only.

    The root mean square of its errors is ``error`` either way.
    """
    share_L = stated_shares()
    wrong_L = np.ones(101) if everywhere else (LEVELS >= _SURE).astype(float)
    return Forecaster(share_L, LEVELS - wrong_L * error / np.sqrt(share_L @ wrong_L))


def rms_error(confidence_N: np.ndarray, outcome_N: np.ndarray) -> float:
    """Return the primary calibration error of independent items."""
    return calibration_error(confidence_N, outcome_N, np.arange(len(outcome_N))).value


def ece_intervals(
    rng: np.random.Generator, confidence_N: np.ndarray, outcome_N: np.ndarray, draws: int
) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Return ECE10, its percentile interval and its basic one (Davison, Hinkley 1997)."""
    # A resample of items is a multinomial draw of the cells (level, outcome).
    level_N = np.round(confidence_N * 100).astype(int)
    share_C = np.bincount(level_N * 2 + outcome_N.astype(int), minlength=202) / len(level_N)
    gap_C = np.repeat(LEVELS, 2) - np.tile([0.0, 1.0], 101)
    drawn_SC = rng.multinomial(len(level_N), share_C, size=draws) / len(level_N)
    value, *_ = _binned_gaps((share_C * gap_C)[None])
    low, high = np.percentile(_binned_gaps(drawn_SC * gap_C), [2.5, 97.5])
    return float(value), (low, high), (max(2 * value - high, 0.0), max(2 * value - low, 0.0))


def _binned_gaps(gap_SC: np.ndarray) -> np.ndarray:
    return np.abs(gap_SC @ np.repeat(_BINS, 2, axis=0)).sum(axis=1)


def smooth_interval(
    rng: np.random.Generator, confidence_N: np.ndarray, outcome_N: np.ndarray, draws: int
) -> tuple[float, float]:
    """Return the percentile interval of the smooth ECE."""
    indices = rng.integers(len(outcome_N), size=(draws, len(outcome_N)))
    low, high = np.percentile(
        [smooth_ece(confidence_N[i], outcome_N[i]) for i in indices], [2.5, 97.5]
    )
    return float(low), float(high)


class Tally:
    """Estimates and intervals of one estimator, against its true value."""

    def __init__(self, truth: float) -> None:
        self.truth = truth
        self.values: list[float] = []
        self.intervals: list[tuple[float, float]] = []

    def add(self, value: float, interval: tuple[float, float]) -> None:
        """Take in the result of one data set."""
        self.values.append(value)
        self.intervals.append(interval)

    def cell(self) -> str:
        """Return mean estimate (true value), coverage and mean width."""
        low, high = np.array(self.intervals).T
        # Rounding must not exclude a true 0.
        held = np.mean((low <= self.truth + 1e-9) & (self.truth - 1e-9 <= high))
        mean, width = np.mean(self.values), np.mean(high - low)
        return f"{mean:.3f} ({self.truth:.3f}) | {held:.0%} | {width:.3f}"


def simulate(settings: Settings, forecaster: Forecaster, n: int) -> list[Tally]:
    """Return the tallies of ECE10 (percentile, basic), the smooth ECE and the debiased error."""
    rng = np.random.default_rng(settings.seed)
    binned, smooth = forecaster.truth(ece), forecaster.truth(smooth_ece)
    percentile, basic = Tally(binned), Tally(binned)
    kernel, debiased = Tally(smooth), Tally(forecaster.truth(rms_error))
    for repetition in range(settings.repetitions):
        data = forecaster.draw(rng, n)
        value, by_percentile, by_basic = ece_intervals(rng, *data, settings.draws)
        percentile.add(value, by_percentile)
        basic.add(value, by_basic)
        root, *interval = calibration_error(*data, np.arange(n))
        debiased.add(root, (interval[0], interval[1]))
        if repetition < settings.smooth_repetitions:
            interval = smooth_interval(rng, *data, settings.smooth_draws)
            kernel.add(smooth_ece(*data), interval)
    return [percentile, basic, kernel, debiased]


_NAMES = ("ECE10, percentile", "ECE10, basic", "smooth ECE, percentile", "debiased RMS")
_HEADER = (
    "| {} | items | interval | mean estimate (true value) | coverage | mean width |\n"
    "|---|---|---|---|---|---|"
)


def main() -> None:
    """Print the tables."""
    settings = tyro.cli(Settings, description=__doc__)
    for everywhere in (True, False):
        print(_HEADER.format("too sure everywhere" if everywhere else "too sure from .8 on"))
        for error in ERRORS:
            for n in ITEMS:
                tallies = simulate(settings, too_sure(error, everywhere), n)
                for name, tally in zip(_NAMES, tallies, strict=True):
                    print(f"| {error:g} | {n} | {name} | {tally.cell()} |", flush=True)
        print()
    print(_HEADER.format("six questions a text, one outcome"))
    for error in ERRORS:
        for name, tally in _clustered(settings, too_sure(error, True), 375, 6).items():
            print(f"| {error:g} | 2250 | {name} | {tally.cell()} |", flush=True)


def _clustered(
    settings: Settings, forecaster: Forecaster, texts: int, questions: int
) -> dict[str, Tally]:
    """Ask each text ``questions`` times, with one confidence and one outcome each time."""
    rng = np.random.default_rng(settings.seed)
    names = ("debiased RMS, items taken for independent", "debiased RMS, texts as clusters")
    tallies = {name: Tally(forecaster.truth(rms_error)) for name in names}
    text_N = np.repeat(np.arange(texts), questions)
    for _ in range(settings.repetitions):
        confidence_N, outcome_N = (column[text_N] for column in forecaster.draw(rng, texts))
        for name, cluster_N in zip(names, (np.arange(len(text_N)), text_N), strict=True):
            value, low, high = calibration_error(confidence_N, outcome_N, cluster_N)
            tallies[name].add(value, (low, high))
    return tallies


if __name__ == "__main__":
    main()
