"""How long runs take here: measured on this device since the server started, by task and size. No torch."""

import threading

from selfspan_core.params import Request

UNKNOWN_S = 10.0
"""What is assumed of a run before anything like it was measured."""
NEWEST_SHARE = 0.3


class RunTimes:
    """Seconds of the device that whole runs took, and what a new one will take by them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[tuple, dict[int, float]] = {}

    def record(self, request: Request, seconds: float) -> None:
        """A run has ended by itself after so many seconds of the device."""
        size = _size(request)
        with self._lock:
            of_kind = self._seconds.setdefault(_kind(request), {})
            of_kind[size] = seconds + (1 - NEWEST_SHARE) * (of_kind.get(size, seconds) - seconds)

    def expected(self, request: Request) -> float | None:
        """Seconds by runs of its kind and size, or of the nearest size; None where none of its kind was measured."""
        size = _size(request)
        with self._lock:
            of_kind = self._seconds.get(_kind(request))
            if not of_kind:
                return None
            nearest = min(of_kind, key=lambda other: abs(other - size))
            return of_kind[nearest] * 2.0 ** (size - nearest)


def _kind(request: Request) -> tuple:
    """What decides besides the size; options by their names and values."""
    return request.task, request.model, request.adapter, request.load, tuple(sorted(request.options.items()))


def _size(request: Request) -> int:
    """The size of a text, as a power of two: what is measured of one text holds for others of about its length."""
    return len(request.text).bit_length()
