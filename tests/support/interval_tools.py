"""What tests ask of interval sets: how much they cover, which positions, whether they are well formed."""

from collections.abc import Iterable, Sequence

from selfspan_core.spans.intervals import Interval


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
