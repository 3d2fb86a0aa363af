"""Confidence intervals of shares of right answers."""

from collections.abc import Sequence
from math import sqrt

Z_95 = 1.959964
"""97.5 % quantile of the standard normal distribution."""


def wilson(right: int, number: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (E. B. Wilson, 1927), which stays within 0 and 1 even at the ends."""
    share, extra = right / number, Z_95**2 / number
    centre = (share + extra / 2) / (1 + extra)
    half = Z_95 / (1 + extra) * sqrt(share * (1 - share) / number + extra / (4 * number))
    return max(0.0, centre - half), min(1.0, centre + half)


def measured(right: Sequence[bool]) -> dict[str, float | int]:
    """Return the share of True, its 95 % interval (low, high) and the number of values (of)."""
    low, high = wilson(sum(right), len(right))
    return {"share": sum(right) / len(right), "low": low, "high": high, "of": len(right)}
