"""Ids that the host hears of one step late: the device's trackers against the one in Python, over whole runs."""

import random
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.engine.batch_parts import grammar_of
from selfspan_core.serve.vllm_plugin.device_rows import DeviceRows, late_queries
from selfspan_core.serve.vllm_plugin.followed import Followed, SpanRows
from selfspan_core.spans.intervals import Interval
from selfspan_core.spans.tracker import Tracker
from tests.support.kernel_on_cpu import COMPILER
from tests.support.slow import examples
from tests.support.span_examples import MARKERS, PROMPT, STREAMS, VOCAB
from tests.support.tracker_on_cpu import Follower

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++ to compile the tracker for the CPU")
GRAMMAR = grammar_of(MARKERS, VOCAB)
MAX_ROWS = 5
CPU = torch.device("cpu")


@dataclass
class Sequence:
    """A request as vLLM has it: what it is going to write, how much of that it has, and its list of ids."""

    stream: list[int]
    num_written: int = 0
    ids: list[int] = field(default_factory=list)
    followed: Followed | None = None

    def visible(self, index: int) -> list[Interval]:
        tracker = Tracker(MARKERS, PROMPT)
        return list([tracker.push(token).visible for token in self.stream[: index + 1]][-1])


class Run:
    """Requests that come, move, are set back and go, with ids that the host hears of a step late."""

    def __init__(self, streams: list[list[int]], seed: int) -> None:
        self.rng, self.rows = random.Random(seed), SpanRows()
        self.device = DeviceRows(Follower(GRAMMAR, MAX_ROWS), MAX_ROWS, CPU)
        self.waiting = [Sequence(stream) for stream in streams if stream]
        self.batch: list[Sequence | None] = [None] * MAX_ROWS

    def change(self) -> None:
        """As vLLM does between two steps: who is at the end goes; others come, are set back, and move."""
        for row, one in enumerate(self.batch):
            if one is None:
                if self.waiting and self.rng.random() < 0.6:
                    self.begin(row, self.waiting.pop())
            elif one.num_written == len(one.stream):
                self.leave(row)
            elif self.rng.random() < 0.1:  # set back; the last id is known by the time that it comes again
                self.leave(row)
                self.waiting.append(one)
        if self.rng.random() < 0.3:
            order = self.rng.sample(range(MAX_ROWS), MAX_ROWS)
            self.batch = [self.batch[old] for old in order]
            self.rows.followed = {row: one.followed for row, one in enumerate(self.batch) if one and one.followed}

    def begin(self, row: int, one: Sequence) -> None:
        one.ids = one.stream[: one.num_written]
        one.followed = Followed(MARKERS, PROMPT, one.ids)
        self.batch[row], self.rows.followed[row] = one, one.followed

    def leave(self, row: int) -> None:
        self.batch[row] = None
        del self.rows.followed[row]

    def step(self) -> None:
        """One id of every row, which the host's list has as a placeholder."""
        active = [(row, one) for row, one in enumerate(self.batch) if one is not None]
        for _, one in active:
            if one.ids and one.ids[-1] < 0:
                one.ids[-1] = one.stream[len(one.ids) - 1]
            one.ids.append(-1)
            one.num_written += 1
            assert one.followed is not None
            one.followed.catch_up()
        lengths = [0 if one is None else PROMPT.num_tokens + len(one.ids) for one in self.batch]
        ids = [VOCAB + 9 if one is None else one.stream[len(one.ids) - 1] for one in self.batch]
        self.device.keep(self.rows.followed.values())
        late, known = late_queries(self.rows, range(MAX_ROWS + 1), lengths)
        assert not known and [one.row for one in late] == [row for row, _ in active]
        if not late:
            return
        of_row = {one.row: one for one in late}
        queries = [of_row.get(row) for row in range(MAX_ROWS)]
        intervals, counts = self.device.push(torch.tensor(ids, dtype=torch.int32), queries, lengths)
        for row, one in active:
            seen = [tuple(interval) for interval in intervals[row, : counts[row]].tolist()]
            assert seen == one.visible(len(one.ids) - 1)
        assert all(counts[row] == 0 for row, one in enumerate(self.batch) if one is None)


@given(st.lists(STREAMS, min_size=1, max_size=12), st.integers(0, 10**6))
@settings(max_examples=examples(60, 600), deadline=None)
def test_every_request_sees_what_its_ids_declare(streams, seed):
    """Would catch a tracker that stays with a row whose request moved, goes on with another's, or missed an id."""
    run = Run(streams, seed)
    for _ in range(400):
        run.change()
        run.step()
        if not run.waiting and not any(run.batch):
            break


def test_slots_come_back():
    """Would catch a server that ends after as many requests as it has slots."""
    device = DeviceRows(Follower(GRAMMAR, 2), 2, CPU)
    for _ in range(9):
        rows = SpanRows({0: Followed(MARKERS, PROMPT, [MARKERS.ref])})
        device.keep(rows.followed.values())
        late, _ = late_queries(rows, [0, 1], [PROMPT.num_tokens + 1])
        _, counts = device.push(torch.tensor([MARKERS.ref], dtype=torch.int32), late, [0])
        assert counts.tolist() == [1]


def test_an_answer_that_is_computed_once_more():
    """Would catch queries of known ids that wait for the device, and a last, unknown one that the host is asked for."""
    stream = [MARKERS.ref, MARKERS.anchors[0], MARKERS.go, MARKERS.end, -1]
    followed = Followed(MARKERS, PROMPT, stream)
    followed.catch_up()
    num = PROMPT.num_tokens + len(stream)
    late, known = late_queries(SpanRows({0: followed}), [0, num], [num])
    assert [(one.place, one.index) for one in late] == [(num - 1, len(stream) - 1)]
    assert all(followed.visible(one.place) == one.visible for one in known)


def test_a_tracker_that_was_passed_by():
    """Would catch a slot that goes on where its request has gone on without it."""
    stream = [MARKERS.ref, MARKERS.anchors[0], MARKERS.go, MARKERS.end]
    followed, device = Followed(MARKERS, PROMPT, stream), DeviceRows(Follower(GRAMMAR, 1), 1, CPU)
    followed.catch_up()
    rows, tracker = SpanRows({0: followed}), Tracker(MARKERS, PROMPT)
    expected = [tracker.push(token).visible for token in stream]
    for index in (0, 3, 2):
        late, _ = late_queries(rows, [0, 1], [PROMPT.num_tokens + index + 1])
        intervals, counts = device.push(torch.tensor([stream[index]], dtype=torch.int32), late, [0])
        assert [tuple(one) for one in intervals[0, : counts[0]].tolist()] == list(expected[index])
