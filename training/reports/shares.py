"""Shares of right answers as reports tell them: in percent, with how far they can be trusted."""

import math


def percent_with_interval(right: int, n: int) -> str:
    """Right answers in percent, with Wilson's interval (95 %)."""
    low, high = wilson(right, n)
    return f"{100 * right / n:.1f} % ({100 * low:.0f}–{100 * high:.0f})"


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share, of which `right` of `n` were seen (E. B. Wilson, 1927)."""
    share, weight = right / n, z * z / n
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)
