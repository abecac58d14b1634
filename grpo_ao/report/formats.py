"""Numbers and tables as the reports write them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grpo_ao.report.headline import Estimate

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
# What a sum of floats is off by.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Table:
    """A table of a report: the columns' names, the rows' own first, and each row's cells."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]

    def markdown(self) -> str:
        """Write the table, without its title, as Markdown."""
        rule = ["---"] * len(self.columns)
        lines = [self.columns, rule, *([name, *cells] for name, cells in self.rows.items())]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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


def cell(estimate: Estimate | None, difference: bool = False) -> str:
    """Write an estimate with the interval that it has: 0.046 [0.030, 0.062]."""
    if estimate is None:
        return NONE
    shown = signed(estimate.value) if difference else number(estimate.value)
    ends = [number(end) for end in (estimate.low, estimate.high)]
    return shown if NONE in ends else f"{shown} [{ends[0]}, {ends[1]}]"
