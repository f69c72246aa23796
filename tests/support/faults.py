"""Faults of decoding, put into an engine's steps: what is raised, and where."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from selfspan_core.engine.host_step import HostStep

PREFILL, DECODING = "begin", "launch"
ERRORS: dict[str, Exception] = {
    "an exception": ValueError("a fault was put here"),
    "out of memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "out of host memory": MemoryError("no memory"),
    "a device error": RuntimeError("CUDA error: an illegal memory access was encountered"),
}
"""By what they stand for."""


@contextmanager
def failing(where: str, error: Exception, after: int = 0, kind: type = HostStep) -> Iterator[list[str]]:
    """Steps of a kind raise once, at the next prefill or decode step after `after` of them; what was raised so far."""
    usual, raised, left = getattr(kind, where), [], [after]

    def instead(step, *arguments):
        left[0] -= 1
        if left[0] < 0 and not raised:
            raised.append(str(error))
            raise error
        return usual(step, *arguments)

    setattr(kind, where, instead)
    try:
        yield raised
    finally:
        setattr(kind, where, usual)


@contextmanager
def clock_set(by_s: float) -> Iterator[None]:
    """The wall clock is somewhere else meanwhile, as after somebody set it."""
    usual = time.time
    time.time = lambda: usual() + by_s
    try:
        yield
    finally:
        time.time = usual
