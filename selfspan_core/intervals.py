"""Interval sets over cache positions: sorted, disjoint, half-open `[start, end)`.

Everything that says "who sees what" in this project is such a set: the tracker emits it, the attention
implementations read it, training turns it into a mask. No torch here.
"""

from collections.abc import Iterable, Sequence

Interval = tuple[int, int]
"""`(start, end)`: cache positions `start <= p < end`."""


def merge(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """Sort, drop empty intervals, and join those that overlap or touch.

    >>> merge([(5, 7), (0, 2), (2, 3), (6, 9)])
    ((0, 3), (5, 9))
    """
    merged: list[list[int]] = []
    for start, end in sorted(intervals):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return tuple((start, end) for start, end in merged)


def clip(intervals: Iterable[Interval], end: int) -> tuple[Interval, ...]:
    """Keep what lies below position `end` (a query at position p may see nothing at or beyond p + 1)."""
    return tuple((start, min(stop, end)) for start, stop in intervals if start < min(stop, end))


def length(intervals: Iterable[Interval]) -> int:
    """Number of positions covered by disjoint intervals."""
    return sum(end - start for start, end in intervals)


def positions(intervals: Iterable[Interval]) -> list[int]:
    """The covered positions, in order."""
    return [p for start, end in intervals for p in range(start, end)]


def check(intervals: Sequence[Interval], context: int) -> None:
    """Raise ValueError unless the intervals are non-empty, sorted, disjoint and inside `[0, context)`."""
    previous_end = 0
    for start, end in intervals:
        if start >= end:
            raise ValueError(f"interval [{start}, {end}) is empty")
        if start < previous_end:
            raise ValueError(f"interval [{start}, {end}) is out of order or overlaps one that ends at {previous_end}")
        previous_end = end
    if previous_end > context:
        raise ValueError(f"an interval ends at {previous_end}, past the context of {context} tokens")
    if not intervals:
        raise ValueError("no interval: every query sees at least itself")
