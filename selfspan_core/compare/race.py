"""The race: lanes on one device, in one thread, stepped by each lane's own clock.

A lane is an iterator of engine events. The lane with the least measured time steps next, so that the viewer always sees
the lanes after the same time of their own clocks, and the lanes never contend for the device. Clocks advance by the
times in the events (the engine times only its own work): the consumer's work between two events, such as drawing,
counts for no lane.

Lanes of a server elsewhere take turns instead, one whole answer after the other: it would compute both at once, in the
same steps, and a lane's time would be that of both.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress

from selfspan_core.engine.events import Event, OtherRows, Prefilled, PromptPart, Token
from selfspan_core.errors import LaneError


def own_seconds(event: Event) -> float:
    """Seconds of its own work that a lane spent to produce this event."""
    if isinstance(event, Token):
        return event.step_ms / 1000
    if isinstance(event, Prefilled):
        return event.seconds - event.told_s
    if isinstance(event, PromptPart | OtherRows):
        return event.seconds
    return 0.0


class Race:
    """Iterates over `(lane_id, event)`; ends when every lane has ended.

    A lane that ends leaves the others to go on alone. Whatever ends the race (exhaustion, an error, `close()`, leaving
    the `with` block) closes all lanes.

    Args:
        lanes: lane id -> its events; on equal clocks the lane that comes first here steps first.
        in_turn: each lane runs to its end before the next one begins.

    Raises:
        LaneError: while iterating, when a lane raises; the others are closed by then.
    """

    def __init__(self, lanes: Mapping[str, Iterator[Event]], in_turn: bool = False) -> None:
        self._in_turn = in_turn
        self._lanes = dict(lanes)
        self._running = dict(lanes)
        self.clocks: dict[str, float] = dict.fromkeys(lanes, 0.0)

    def __iter__(self) -> "Race":
        return self

    def __next__(self) -> tuple[str, Event]:
        while self._running:
            lane_id = next(iter(self._running)) if self._in_turn else min(self._running, key=self.clocks.__getitem__)
            try:
                event = next(self._running[lane_id])
            except StopIteration:
                del self._running[lane_id]
                continue
            except Exception as error:
                with suppress(Exception):  # the lane's own failure is reported, not an error from closing the others
                    self.close()
                raise LaneError(lane_id, error) from error
            self.clocks[lane_id] += own_seconds(event)
            return lane_id, event
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Close every lane, each one even if closing another fails; closing twice is harmless."""
        self._running.clear()
        lanes, self._lanes = self._lanes, {}
        failure: Exception | None = None
        for lane in lanes.values():
            try:
                if hasattr(lane, "close"):
                    lane.close()
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def __enter__(self) -> "Race":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
