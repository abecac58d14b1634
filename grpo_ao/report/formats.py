"""Numbers as the reports write them."""

import math

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
# What a sum of floats is off by.
_ROUNDING = 1e-9


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
