"""Numbers and tables as the reports write them."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_ao.probe import FEW_TEXTS

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
DAGGER = "\N{DAGGER}"
FEW_NOTE = f"{DAGGER} of fewer than {FEW_TEXTS} texts, too few for a conclusion"
# Names of metrics, alike in every table and figure.
TITLES = {
    "informativeness": "Informativeness (accuracy)",
    "neither_rate": "Neither yes nor no",
    "parse_rate": "Parse rate",
    "confidence_mean": "Confidence, mean",
    "confidence_std": "Confidence, standard deviation",
    "auroc_within": "AUROC within families",
    "auroc": "AUROC",
    "somers_d": "Somers' D over grades",
    "calibration_error": "Calibration error (RMS, debiased)",
    "ece10": "ECE, 10 bins",
    "ece10_perfect": "ECE of a perfect forecaster at these confidences",
    "ece_mass": "ECE, 10 bins of equal mass",
    "ece_smooth": "Smooth ECE",
    "mce": "MCE, bins of at least 20 items",
    "brier": "Brier",
    "brier_reliability": "Brier, reliability",
    "brier_resolution": "Brier, resolution",
    "brier_uncertainty": "Brier, uncertainty",
    "brier_isotonic": "Brier after isotonic recalibration",
    "brier_all": "Brier, unparsed as 50 % on wrong",
    "nll": "NLL",
    "risk_at_80": "Share wrong of the surest 80 %",
    "aurc": "Area under risk-coverage",
}
# What a sum of floats is off by.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Table:
    """A table of a report: the columns' names, the rows' own first, and each row's cells.

    ``few`` names the rows and columns whose figures are of too few texts for a conclusion.
    """

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]
    few: Collection[str] = ()

    def marked(self, name: str) -> str:
        """Write the name of a row or column, with a dagger if its figures are of few texts."""
        return f"{name} {DAGGER}" if name in self.few else name

    def markdown(self) -> str:
        """Write the table, without its title, as Markdown."""
        head = [self.marked(name) for name in self.columns]
        rows = [[self.marked(name), *cells] for name, cells in self.rows.items()]
        lines = [head, ["---"] * len(head), *rows]
        written = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{written}\n\n{FEW_NOTE}" if self.few else written


def few_of(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of what was measured on too few texts for a conclusion."""
    return [name for name, found in measured.items() if found["contexts"] < FEW_TEXTS]


def number(value: float | None, digits: int = 3) -> str:
    """Write a number: 0.046, 1,234, 120.5, 1e-05, with a real minus; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    if isinstance(value, int):
        shown = f"{value:,}"
    elif _ROUNDING < abs(value) < 10**-digits / 2:
        shown = f"{value:.0e}"
    else:
        shown = f"{value:,.1f}" if abs(value) >= 100 else f"{value:.{digits}f}"
    return shown.replace("-", MINUS)


def signed(value: float | None) -> str:
    """Write a difference, with its sign."""
    return f"+{number(value)}" if value is not None and value > 0 else number(value)


def cell(entry: Mapping[str, float | None] | None, difference: bool = False) -> str:
    """Write an entry of a measurement with the interval that it has: 0.046 [0.030, 0.062]."""
    if entry is None:
        return NONE
    shown = signed(entry["value"]) if difference else number(entry["value"])
    ends = [number(entry[end]) for end in ("low", "high")]
    return shown if NONE in ends else f"{shown} [{ends[0]}, {ends[1]}]"
