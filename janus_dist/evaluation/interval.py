"""How sure a share of right answers is."""

from collections.abc import Sequence
from math import sqrt

Z_95 = 1.959964
"""The standard normal's 97.5 % quantile."""


def wilson(right: int, number: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (E. B. Wilson, 1927): it stays within 0 and 1, also at 0
    or all right."""
    share, extra = right / number, Z_95**2 / number
    centre = (share + extra / 2) / (1 + extra)
    half = Z_95 / (1 + extra) * sqrt(share * (1 - share) / number + extra / (4 * number))
    return max(0.0, centre - half), min(1.0, centre + half)


def measured(right: Sequence[bool]) -> dict[str, float | int]:
    """Return a share with its interval and its number of trials."""
    low, high = wilson(sum(right), len(right))
    return {"share": sum(right) / len(right), "low": low, "high": high, "of": len(right)}
