"""One target and many inputs: each within its time, every error one of ours, memory where it was."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase

from selfspan_core.bench_systems import peak_mb

MOST_S = 2.0
"""Seconds of a processor for one input, on a laptop."""
HANG_S = 20.0
"""Seconds after which an input is given up."""
MOST_GROWTH_MB = 400


class TooSlow(AssertionError):
    """An input that took too long."""


@dataclass(frozen=True)
class Target:
    """Something that takes inputs from anybody.

    Attributes:
        name: in words.
        kind: "parser", "interface" or "ids": how many inputs are enough depends on it.
        inputs: what is tried.
        check: takes one; returns how many things were tried with it (1, or the ids of a stream), and raises what is
            a fault.
        known: inputs that are tried first, whatever the seed: what once failed. The first one also loads what is
            loaded once, and is not timed then.
    """

    name: str
    kind: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], int]
    known: tuple[Any, ...]


@dataclass
class Tried:
    """What was tried: inputs, the slowest one's seconds of a processor, and the memory that stayed."""

    inputs: int = 0
    things: int = 0
    slowest_s: float = 0.0
    growth_mb: float = 0.0


def _give_up(*_: object) -> None:
    raise TooSlow(f"no end after {HANG_S:g} s of a processor")


def attempt(target: Target, value: Any, tried: Tried) -> None:
    """One input.

    Raises:
        TooSlow: it took more than MOST_S.
        Exception: whatever the target raises is a fault.
    """
    kept = signal.signal(signal.SIGPROF, _give_up)
    signal.setitimer(signal.ITIMER_PROF, HANG_S)
    began = time.process_time()
    try:
        tried.things += target.check(value)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, kept)
    took = time.process_time() - began
    tried.inputs += 1
    tried.slowest_s = max(tried.slowest_s, took)
    if took > MOST_S:
        raise TooSlow(f"{took:.1f} s of a processor")


def fuzz(target: Target, num_inputs: int, number: int | None, found: str | None = None) -> Tried:
    """Many inputs.

    Args:
        number: seed, for the same inputs each time; None: others each time.
        found: without a seed, the folder where what fails is kept, so that it is tried first the next time; hypothesis
            keeps nothing of inputs that a seed brings again.

    Raises:
        Exception: the first fault, of the shortest input that has it; hypothesis says which that is.
        AssertionError: the process kept more than MOST_GROWTH_MB.
    """
    tried = Tried()
    target.check(target.known[0])
    for value in target.known:
        attempt(target, value, tried)
    before = peak_mb()
    kept: ExampleDatabase | None = DirectoryBasedExampleDatabase(found) if found else None
    checked = settings(
        max_examples=num_inputs,
        deadline=None,
        database=kept,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.reuse, Phase.generate, Phase.shrink] if kept else [Phase.generate, Phase.shrink],
    )(given(target.inputs)(lambda value: attempt(target, value, tried)))
    (checked if number is None else seed(number)(checked))()
    tried.growth_mb = peak_mb() - before
    assert tried.growth_mb < MOST_GROWTH_MB, f"{target.name}: {tried.growth_mb:.0f} MB more than before"
    return tried
