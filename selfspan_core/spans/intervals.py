"""Interval sets over cache positions: sorted, disjoint, half-open `[start, end)`.

Visibility is always expressed as such a set: the tracker emits it, the attention implementations read it, and training
turns it into a mask. No torch here.
"""

from collections.abc import Iterable

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
