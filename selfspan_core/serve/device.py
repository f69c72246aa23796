"""The device that all visitors share: one thread does its work, a tick at a time, for the run whose turn it is.

The thread imports, loads and computes; visitors' threads only wait for what it brings. So nothing is ever loaded twice
or by two at once, whoever waits can be told why, and a run that nobody wants any more ends at its next tick without
anybody's waiting for it. No torch at import.
"""

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator

from selfspan_core.errors import Busy, NotReady, OutOfTime
from selfspan_core.params import Request
from selfspan_core.serve.line import Line, Place
from selfspan_core.serve.run_times import RunTimes

PATIENCE_S = 900.0
MOST_RUN_S = 300.0
FIRST_WORD_S = 0.75
"""Who waits hears of it within a second, the way to them included."""
TELL_EVERY_S = 1.0
MOST_SILENCE_S = 4.0
log = logging.getLogger("selfspan")


class _Run:
    """A run as the device's thread sees it: `begin` makes its ticks; one tick, or the end, is ready at a time.

    Args:
        place: in the line.
        begin: makes the ticks; loads whatever they need.
        lock: of the device.
        is_wanted: whether anybody still waits for its end; asked before every tick.
        only_loads: it loads models at every tick, and does nothing else.
    """

    def __init__(
        self,
        place: Place,
        begin: Callable[[], Iterator],
        lock: threading.Lock,
        is_wanted: Callable[[], bool] = lambda: True,
        only_loads: bool = False,
    ) -> None:
        self.place = place
        self.is_wanted = is_wanted
        self._only_loads = only_loads
        self._begin = begin
        self._ticks: Iterator[dict] | None = None
        self._context = contextvars.copy_context()
        self.is_asked = False  # somebody waits for the next tick
        self.is_answered = threading.Condition(lock)
        self.result: tuple[dict | None, BaseException | None] | None = None

    @property
    def is_loading(self) -> bool:
        """Whether its next tick may have to load models."""
        return self._ticks is None or self._only_loads

    def work(self) -> tuple[dict | None, BaseException | None]:
        """The next tick, None at the end, or what it failed of."""
        try:
            return self._context.run(self._next), None
        except BaseException as error:
            return None, error

    def _next(self) -> dict | None:
        if not self.is_wanted():
            return None
        if self._ticks is None:
            self._ticks = iter(self._begin())
        return next(self._ticks, None)

    def close(self) -> None:
        """Free what it holds of the device."""
        ticks, self._ticks = self._ticks, None
        if hasattr(ticks, "close"):
            try:
                self._context.run(ticks.close)
            except Exception:
                log.exception("a run could not be closed")


class SharedDevice:
    """Access to the device: one run at a time, released however a run ends.

    Args:
        session: its runs share the device: anything with `compare` and `can_pause`.
        patience_s: seconds that a run waits for its turn.
        most_run_s: seconds that a run may have the device.
    """

    def __init__(self, session, patience_s: float = PATIENCE_S, most_run_s: float = MOST_RUN_S) -> None:
        self._session = session
        self._patience_s, self._most_run_s = patience_s, most_run_s
        self._lock = threading.Lock()
        # One condition for each who waits, not one for all: a tick wakes only the visitor that it is for.
        self._has_work = threading.Condition(self._lock)
        self._line = Line()
        self._runs: dict[Place, _Run] = {}
        self._times = RunTimes()
        self._thread: threading.Thread | None = None
        self._loading_since: float | None = None

    def compare(
        self, request: Request, visitor: str = "", is_wanted: Callable[[], bool] = lambda: True
    ) -> Iterator[dict]:
        """The session's ticks. Before them `waiting` objects, the first within a second: see docs/api.md.

        Closing the iterator ends the run. A visitor's runs come one after the other.

        Args:
            request: the request.
            visitor: whose it is; empty: nobody's in particular.
            is_wanted: asked before every tick; the run ends where it says no.

        Raises:
            InputError: bad input.
            Busy: its turn does not come in time, or the visitor has too many runs waiting.
            OutOfTime: it has had the device for as long as a run may.
        """
        expected_s = self._times.expected(request)
        run = self._join(lambda: self._session.compare(request), visitor, expected_s, is_wanted)
        try:
            began = yield from self._waited(run)
            while began is not None:
                yield began
                if run.place.used_s > self._most_run_s:
                    raise OutOfTime(self._most_run_s)
                began = self._asked(run)
            if run.is_wanted():
                self._times.record(request, run.place.used_s)
        finally:
            self._leave(run)

    def warm(self) -> None:
        """Load the session's models and answer its first requests, so that visitors need not wait for that.

        Visitors who come meanwhile are told so. Measured times of these runs are the first that are known.
        """
        try:
            run = self._join(self._session.loads, only_loads=True)
            try:
                while self._asked(run) is not None:
                    pass
            finally:
                self._leave(run)
            for request in self._session.first_requests():
                for _ in self.compare(request):
                    pass
        except NotReady as error:  # the message names the missing part and the command that makes it
            # Its cause has the paths, which are for whoever runs the server.
            log.error("%s", error.__cause__ or error)
        except Exception:
            log.exception("could not load the models")

    def _join(
        self,
        begin: Callable[[], Iterator],
        visitor: str = "",
        expected_s: float | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
        only_loads: bool = False,
    ) -> _Run:
        with self._lock:
            run = _Run(self._line.join(visitor, expected_s), begin, self._lock, is_wanted, only_loads)
            self._runs[run.place] = run
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="device", daemon=True)
                self._thread.start()
            return run

    def _leave(self, run: _Run) -> None:
        """The device's thread closes what the run holds, at once or after the tick that it is at."""
        with self._lock:
            run.place.is_over = True
            self._has_work.notify()

    def _waited(self, run: _Run) -> Iterator[dict]:
        """Says why it takes so long until the first tick, which it returns; None where nobody waits for it any more."""
        since = told = time.monotonic()
        self._ask(run)
        while True:
            with self._lock:
                # The first word comes at once; in a crowd the later ones cost the server more than they tell.
                tell_at = told + (FIRST_WORD_S if told == since else self._patient_s(run))
                while run.result is None and time.monotonic() < tell_at:
                    run.is_answered.wait(tell_at - time.monotonic())
                if run.result is not None:
                    return self._taken(run)
                told = time.monotonic()
                if told - since > self._patience_s and not run.place.is_open:
                    raise Busy("Too many runs are before yours. Try again in a few minutes.")
                news = self._told(run, told - since)
            # Asked once for each word, as before each tick. Others wait no longer for a run that is taken back.
            if not run.is_wanted():
                return None
            yield news

    def _patient_s(self, run: _Run) -> float:
        """Seconds until a run that was told is told again: near the front every second, in a crowd less often."""
        return min(max(len(self._line.ahead(run.place)) * TELL_EVERY_S / 4, TELL_EVERY_S), MOST_SILENCE_S)

    def _told(self, run: _Run, waited_s: float) -> dict:
        """What a run waits for."""
        told = {"kind": "waiting", "seconds": round(waited_s, 1)}
        if self._loading_since is not None:
            seconds = time.monotonic() - self._loading_since
            return {**told, "for": "model", "message": f"Loading the model, {seconds:.0f} s."}
        ahead, wait_s = len(self._line.ahead(run.place)), self._line.wait_s(run.place)
        runs = "another run has the device" if ahead < 2 else f"{ahead} runs are before yours"
        message = f"Waiting: {runs}. Yours starts by itself, in about {max(1, round(wait_s))} s."
        return {**told, "for": "device", "ahead": ahead, "expected_s": round(wait_s, 1), "message": message}

    def _ask(self, run: _Run) -> None:
        with self._lock:
            run.is_asked, run.result = True, None
            self._has_work.notify()

    def _asked(self, run: _Run) -> dict | None:
        """The next tick, None at the end; waits for it."""
        self._ask(run)
        with self._lock:
            while run.result is None:
                run.is_answered.wait()
            return self._taken(run)

    @staticmethod
    def _taken(run: _Run) -> dict | None:
        assert run.result is not None
        tick, error = run.result
        if error is not None:
            raise error
        return tick

    def _serve(self) -> None:
        """The device's thread."""
        while True:
            with self._lock:
                run = self._next_run()
                is_loading = run.is_loading
                if is_loading and self._loading_since is None:
                    self._loading_since = time.monotonic()
            if run.place.is_over:
                run.close()
                self._removed(run)
                continue
            began = time.monotonic()
            result = run.work()
            can_give_way = self._session.can_pause() if is_loading and result[1] is None else None
            with self._lock:
                if can_give_way is not None:
                    self._line.can_give_way = can_give_way
                if not is_loading:
                    run.place.used_s += time.monotonic() - began
                if not run.is_loading:
                    self._loading_since = None
                run.is_asked, run.result = False, result
                run.is_answered.notify()

    def _next_run(self) -> _Run:
        """The run that has work to do; waits until there is one. With the lock held."""
        while True:
            over = next((run for place, run in self._runs.items() if place.is_over), None)
            if over is not None:
                return over
            place = self._line.due()
            if place is not None and self._runs[place].is_asked:
                return self._runs[place]
            self._has_work.wait()

    def _removed(self, run: _Run) -> None:
        with self._lock:
            self._line.leave(run.place)
            del self._runs[run.place]
            self._loading_since = None
