"""Long sweeps: a sample by default, all of them with SELFSPAN_SLOW=1 (`make test-all`)."""

import os
from collections.abc import Collection, Iterable

import pytest

SLOW = os.environ.get("SELFSPAN_SLOW") == "1"


def examples(sample: int, sweep: int) -> int:
    """How many examples hypothesis tries."""
    return sweep if SLOW else sample


def sampled(values: Iterable, sample: Collection) -> list:
    """Parameters of a sweep; those outside the sample are marked slow."""
    values = list(values)
    assert all(value in values for value in sample), "the sample is no part of the sweep"
    marks = {False: pytest.mark.slow, True: ()}
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=marks[value in sample])
        for value in values
    ]
