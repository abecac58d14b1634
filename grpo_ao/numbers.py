"""The numbers of a configuration: what no setting can be is refused by its flag's name."""

from collections.abc import Collection
from typing import Any

from grpo_ao.errors import UserError

# Larger numbers of anything cannot be meant, and overflow in what they are handed to.
_LARGEST = 2**31 - 1


def check_numbers(
    config: Any,
    shares: Collection[str] = (),
    may_be_zero: Collection[str] = (),
    at_least_2: Collection[str] = (),
) -> None:
    """Raise UserError for a field of a dataclass that is not finite, too large or too small.

    ``shares`` lie between 0 and 1, the others are above 0 unless they are named.
    """
    for name, value in vars(config).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not abs(value) <= _LARGEST:  # NaN neither
            raise UserError(f"--{name} must be a number up to {_LARGEST}, got {value!r:.40}.")
        if name in shares and not 0 <= value <= 1:
            raise UserError(f"--{name} must lie between 0 and 1, got {value}.")
        if name in may_be_zero and value < 0:
            raise UserError(f"--{name} must be 0 or more, got {value}.")
        if name in at_least_2 and value < 2:
            raise UserError(f"--{name} must be at least 2, got {value}.")
        if name not in (*shares, *may_be_zero) and value <= 0:
            raise UserError(f"--{name} must be above 0, got {value}.")
