"""Interval sets against plain Python sets of positions."""

import doctest
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfspan_core.spans import intervals
from tests.support import interval_tools

LOOSE = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)
"""Any order, overlapping, empty or backwards."""


def covered(loose):
    return {p for start, end in loose for p in range(start, end)}


@given(LOOSE)
def test_merge_covers_the_same_positions_sorted_and_disjoint(loose):
    """Would catch a position lost or weighed twice when pieces overlap, touch, repeat or come out of order."""
    merged = intervals.merge(loose)
    assert set(interval_tools.positions(merged)) == covered(loose)
    assert len(interval_tools.positions(merged)) == interval_tools.length(merged) == len(covered(loose))
    if merged:
        interval_tools.check(merged, 60)
    gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(merged)]
    assert all(gap > 0 for gap in gaps), "touching intervals were not joined"


@given(LOOSE)
def test_merge_is_idempotent(loose):
    """Would catch a result that depends on how often pieces are merged."""
    merged = intervals.merge(loose)
    assert intervals.merge(merged) == merged


@pytest.mark.parametrize(
    ("bad", "context", "message"),
    [
        ([], 5, "no interval"),
        ([(2, 2)], 5, "empty"),
        ([(3, 2)], 5, "empty"),
        ([(2, 4), (0, 1)], 5, "out of order"),
        ([(0, 3), (2, 4)], 5, "overlaps"),
        ([(0, 6)], 5, "past the context of 5"),
        ([(-1, 2)], 5, "out of order"),
    ],
)
def test_check_refuses(bad, context, message):
    """Would catch a malformed set that reaches a kernel, which trusts it."""
    with pytest.raises(ValueError, match=message):
        interval_tools.check(bad, context)


def test_check_accepts_touching():
    """Half-open intervals may touch; would catch `<=` for `<`."""
    interval_tools.check([(0, 2), (2, 5)], 5)


def test_docstring_examples():
    """Would catch documentation that is not true."""
    assert doctest.testmod(intervals).failed == 0
