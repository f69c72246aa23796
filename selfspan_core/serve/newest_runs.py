"""The newest run of each tab: an older one that still runs gives way within a tick."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

MOST_BETWEEN_S = 1800.0
"""Seconds from a run's check to its beginning, which waits for others; later it is taken for one that never comes."""


@dataclass
class _Newest:
    number: int
    since_s: float
    has_begun: bool = False


class NewestRuns:
    """Runs by tab. What a tab has checked and never begun is forgotten after a while.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._runs: dict[str, _Newest] = {}  # in the order of their checks

    def __len__(self) -> int:
        return len(self._runs)

    def check(self, tab: str, number: int) -> None:
        """A tab's input is good: this is its newest run from now on."""
        with self._lock:
            self._forget_old()
            self._runs.pop(tab, None)
            self._runs[tab] = _Newest(number, self._clock())

    def begin(self, tab: str, number: int) -> None:
        """A run's turn has come."""
        with self._lock:
            if self.is_newest(tab, number):
                self._runs[tab].has_begun = True

    def is_newest(self, tab: str, number: int) -> bool:
        """Whether a run is its tab's newest one, and not stopped."""
        newest = self._runs.get(tab)
        return newest is not None and newest.number == number

    def end(self, tab: str, number: int) -> None:
        """A run is over; a newer one of its tab stays."""
        with self._lock:
            if self.is_newest(tab, number):
                del self._runs[tab]

    def forget(self, tab: str) -> int | None:
        """The number of a tab's newest run, which is none from now on; None where it had none."""
        with self._lock:
            newest = self._runs.pop(tab, None)
        return None if newest is None else newest.number

    def _forget_old(self) -> None:
        old = []
        for tab, newest in self._runs.items():
            if self._clock() - newest.since_s < MOST_BETWEEN_S:
                break
            if not newest.has_begun:
                old.append(tab)
        for tab in old:
            del self._runs[tab]
