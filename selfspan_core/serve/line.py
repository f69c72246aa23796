"""The line of runs in front of one device: who is next, who gives way, and how long the others will wait.

Only one run has the device. The shortest goes first, and a second that a run has waited counts as a second less, so
that nobody waits for ever. A run that was measured to be far shorter than what is left of the one that has the device
takes its place between two ticks; the longer one goes on where it was, and is passed for no longer than it takes
itself. No threads and no torch here.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from selfspan_core.errors import Busy
from selfspan_core.serve.run_times import UNKNOWN_S

MAX_OF_VISITOR = 8
FAR_SHORTER = 3.0
MOST_OPEN = 3


@dataclass(eq=False)
class Place:
    """One run's place in the line.

    Attributes:
        visitor: whose run it is; empty: nobody's in particular.
        expected_s: seconds of the device that it will take, if that is known.
        joined: clock of its arrival.
        used_s: seconds of the device so far.
        opened: clock of its beginning; None before that. Others may have the device in between.
        is_over: it has ended, or nobody wants it any more.
    """

    visitor: str
    expected_s: float | None
    joined: float
    used_s: float = 0.0
    opened: float | None = None
    is_over: bool = False
    number: int = field(default=0)

    @property
    def is_open(self) -> bool:
        """Whether it has begun."""
        return self.opened is not None

    @property
    def left_s(self) -> float:
        """Seconds that it will still take. One that took longer than expected is taken to be half done."""
        expected = UNKNOWN_S if self.expected_s is None else self.expected_s
        return max(expected - self.used_s, self.used_s)


class Line:
    """The runs that have the device or wait for it. Not safe for threads: callers hold a lock.

    Args:
        clock: seconds.

    Attributes:
        can_give_way: whether a run that has begun may let a shorter one pass.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._places: list[Place] = []
        self._numbers = itertools.count()
        self._current: Place | None = None
        self.can_give_way = False

    def join(self, visitor: str = "", expected_s: float | None = None) -> Place:
        """A place at the end. Raises Busy where the visitor has too many already."""
        own = sum(place.visitor == visitor and not place.is_over for place in self._places) if visitor else 0
        if own >= MAX_OF_VISITOR:
            raise Busy(f"You have {own} runs waiting already. Try again when one of them has ended.")
        place = Place(visitor, expected_s, self._clock(), number=next(self._numbers))
        self._places.append(place)
        return place

    def leave(self, place: Place) -> None:
        """A run is over, in whatever way."""
        place.is_over = True
        if place in self._places:
            self._places.remove(place)
        if self._current is place:
            self._current = None

    def due(self) -> Place | None:
        """The run that has the device from now on; None where nobody is there."""
        current = self._current
        if current is None:
            self._current = min(self._candidates(), key=self._score, default=None)
        elif self.can_give_way:
            shorter = [place for place in self._candidates() if self._passes(place, current)]
            self._current = min(shorter, key=self._score, default=current)
        if self._current is not None and self._current.opened is None:
            self._current.opened = self._clock()
        return self._current

    def ahead(self, place: Place) -> list[Place]:
        """The runs that come before one that waits; not those that are over and still at a tick."""
        others = (other for other in self._places if other is not place and not other.is_over)
        return [other for other in others if other is self._current or self._score(other) < self._score(place)]

    def wait_s(self, place: Place) -> float:
        """Seconds until a run that waits has the device, by what is known now."""
        return sum(other.left_s for other in self.ahead(place))

    def __len__(self) -> int:
        return len(self._places)

    def _candidates(self) -> list[Place]:
        """Runs that may have the device next: of each visitor one, and no more begun ones than memory holds."""
        first: dict[object, Place] = {}
        for place in self._places:
            first.setdefault(place.visitor or place, place)
        num_open = sum(place.is_open for place in self._places)
        has_room = num_open < (MOST_OPEN if self.can_give_way else 1)
        return [place for place in first.values() if place is not self._current and (place.is_open or has_room)]

    def _score(self, place: Place) -> tuple[float, int]:
        """The least goes first."""
        waited_s = self._clock() - place.joined - place.used_s
        return place.left_s - waited_s, place.number

    def _passes(self, place: Place, current: Place) -> bool:
        """Whether a run that waits takes the place of the one that has the device."""
        is_far_shorter = place.expected_s is not None and FAR_SHORTER * place.left_s <= current.left_s
        opened = self._clock() if current.opened is None else current.opened
        passed_s = self._clock() - opened - current.used_s
        return is_far_shorter and passed_s <= current.used_s + current.left_s
