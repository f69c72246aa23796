"""The race between lanes: who steps when, whose clock runs, and what happens when a lane ends, fails or is stopped."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfspan_core.compare.race import Race
from selfspan_core.engine.events import Finished, OtherRows, Prefilled, PromptPart, StepEnded, Token
from selfspan_core.errors import LaneError
from selfspan_core.spans.tracker import Phase, StepRecord


def token(step_ms, number=0):
    return Token(number, number, step_ms, number + 1, number + 1, Phase.BETWEEN, -1, ((0, number + 1),))


class ScriptedLane:
    """Plays events and remembers whether it was closed."""

    def __init__(self, step_ms, count, prefill_s=0.0, fail_at=None, close_error=None):
        self.closed = False
        self._close_error = close_error
        self._events = self._play(step_ms, count, prefill_s, fail_at)

    def _play(self, step_ms, count, prefill_s, fail_at):
        yield Prefilled(1, prefill_s)
        for number in range(count):
            if number == fail_at:
                raise RuntimeError("out of memory")
            yield token(step_ms, number)
        yield Finished("eos", prefill_s + step_ms * count / 1000, count, 0, 0, 0)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._events)

    def close(self):
        self.closed = True
        self._events.close()
        if self._close_error:
            raise self._close_error


def order(race):
    return [lane for lane, event in race if isinstance(event, Token)]


def test_the_lane_behind_steps_next():
    """Would catch lanes that simply alternate: a lane three times as fast writes three tokens to the other's one."""
    sequence = "".join(order(Race({"a": ScriptedLane(3, 4), "b": ScriptedLane(1, 12)})))
    assert sequence == "abbbabbbabbbabbb"


def test_prefill_counts():
    """Would catch a race that forgets prefill: the lane whose prefill took longer must start late."""
    race = Race({"a": ScriptedLane(1, 5, prefill_s=0.0035), "b": ScriptedLane(1, 5)})
    assert "".join(order(race)) == "bbbbabaaaa"


def test_long_prompts_take_turns():
    """Would catch one lane's prompt that is processed whole before the other's, and parts that count twice."""
    prompt = [PromptPart(5, 0.2), PromptPart(10, 0.3), Prefilled(12, 0.6, told_s=0.5), token(1.0)]
    race = Race({"a": iter(prompt), "b": iter(prompt)})
    assert "".join(lane for lane, _ in race) == "abababab"
    assert race.clocks == {lane: pytest.approx(0.601) for lane in "ab"}


@given(st.floats(0.1, 50), st.floats(0.1, 50), st.integers(1, 60), st.integers(1, 60))
def test_clocks_never_drift_apart(ms_a, ms_b, count_a, count_b):
    """Would catch unfairness: while both run, their clocks differ by at most one step of either."""
    race = Race({"a": ScriptedLane(ms_a, count_a), "b": ScriptedLane(ms_b, count_b)})
    done = {"a": 0, "b": 0}
    for lane, event in race:
        done[lane] += isinstance(event, Token)
        if done["a"] < count_a and done["b"] < count_b:
            assert abs(race.clocks["a"] - race.clocks["b"]) <= max(ms_a, ms_b) / 1000 + 1e-9
    assert done == {"a": count_a, "b": count_b}
    assert race.clocks["a"] == pytest.approx(ms_a * count_a / 1000)


def test_slow_consumer_changes_nothing():
    """Would catch a race that looks at the wall clock: drawing between events must be in nobody's clock."""
    quick = Race({"a": ScriptedLane(0.3, 20), "b": ScriptedLane(0.2, 20)})
    quick_order = order(quick)
    slow = Race({"a": ScriptedLane(0.3, 20), "b": ScriptedLane(0.2, 20)})
    slow_order = []
    for lane, event in slow:
        time.sleep(0.003 if lane == "a" else 0)
        slow_order += [lane] if isinstance(event, Token) else []
    assert slow_order == quick_order
    assert slow.clocks == quick.clocks


def test_events_without_time_do_not_move_clocks():
    """Would catch tracker news being taken for work."""
    record = StepRecord(0)
    race = Race({"a": iter([StepEnded(0, record)] * 3), "b": iter([token(1.0)])})
    assert [lane for lane, _ in race] == ["a", "a", "a", "b"]
    assert race.clocks == {"a": 0.0, "b": 0.001}


def test_other_rows_cost_time_but_no_steps():
    """Would catch a lane that answers several requests and pays for none of the others' prefills, or for every id."""
    race = Race({"a": iter([OtherRows(0, 0.002), OtherRows(31, 0.0), token(1.0)]), "b": iter([token(1.0)] * 3)})
    assert [lane for lane, _ in race] == ["a", "b", "b", "a", "a", "b"]
    assert race.clocks == {"a": 0.003, "b": 0.003}


def test_a_lane_goes_on_alone():
    """Would catch a race that ends with its first lane."""
    lanes = {"a": ScriptedLane(1, 2), "b": ScriptedLane(1, 7)}
    assert order(Race(lanes)).count("b") == 7
    assert lanes["a"].closed and lanes["b"].closed


def test_single_lane():
    """Would catch code that needs two lanes."""
    events = list(Race({"only": ScriptedLane(1, 3)}))
    assert len(events) == 5 and isinstance(events[-1][1], Finished)


def test_stop_closes_both_lanes():
    """Would catch a lane that keeps its memory after Stop."""
    lanes = {"a": ScriptedLane(1, 50), "b": ScriptedLane(1, 50)}
    with Race(lanes) as race:
        for _ in range(9):
            next(race)
    assert lanes["a"].closed and lanes["b"].closed
    with pytest.raises(StopIteration):
        next(race)
    race.close()


def test_error_in_the_consumer_closes_both_lanes():
    """Would catch lanes that stay open when drawing fails."""
    lanes = {"a": ScriptedLane(1, 50), "b": ScriptedLane(1, 50)}
    with pytest.raises(ZeroDivisionError), Race(lanes) as race:
        next(race)
        raise ZeroDivisionError
    assert lanes["a"].closed and lanes["b"].closed


@pytest.mark.parametrize("close_error", [None, RuntimeError("cannot close")])
def test_a_failing_lane_is_named_and_the_other_closed(close_error):
    """Would catch an error that does not say whose it is, or that leaves the other lane open or is hidden by it."""
    lanes = {"dense": ScriptedLane(1, 50, close_error=close_error), "sparse": ScriptedLane(1, 50, fail_at=3)}
    race = Race(lanes)
    with pytest.raises(LaneError, match="the sparse lane failed: out of memory") as caught:
        list(race)
    assert caught.value.lane_id == "sparse" and isinstance(caught.value.__cause__, RuntimeError)
    assert lanes["dense"].closed


def test_every_lane_is_closed_even_if_closing_one_fails():
    """Would catch the second lane being forgotten because the first one failed to close."""
    lanes = {"a": ScriptedLane(1, 5, close_error=RuntimeError("cannot close")), "b": ScriptedLane(1, 5)}
    race = Race(lanes)
    next(race)
    with pytest.raises(RuntimeError, match="cannot close"):
        race.close()
    assert lanes["b"].closed
