"""Rules of rows before a step on the device: one table per query, drafts that rules forbid cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.engine.row_rules import RowRules
from selfspan_core.engine.rules import Limits
from tests.support.slow import examples

VOCAB, QUERIES, ROWS = 24, 5, 3
NOTHING, RAISES = 20, 21
"""Ids behind which the rules leave nothing, and behind which they raise."""
CPU = torch.device("cpu")


class Near:
    """Rules: only ids near the last one in a circle; never one that is a multiple of 7, but for 0."""

    def __init__(self, written=(0,)):
        self.written = list(written)
        self.num_forks = 0

    def limits(self):
        last = self.written[-1]
        if last == RAISES:
            raise RuntimeError("a defect")
        if last == NOTHING:
            return Limits((1,), (1,))
        only = [(last + step) % VOCAB for step in range(1, 6)]
        return Limits(only if last % 3 else None, (7, 14, *only[:1]))

    def push(self, token):
        self.written.append(token)

    def fork(self):
        self.num_forks += 1
        return Near(self.written)


def tables_of(rules, num_queries=QUERIES):
    """What is forbidden, bool `[ROWS, num_queries, VOCAB]`."""
    return rules.narrowed(torch.zeros(ROWS * num_queries, VOCAB)).isinf().view(ROWS, num_queries, VOCAB)


def table_alone(written):
    """What is forbidden behind some ids, by rules that were told of them one by one, without drafts."""
    rules = RowRules(ROWS, VOCAB, CPU)
    rules.begin(1, Near(), torch.zeros(1, VOCAB))
    for token in written[1:]:
        rules.push(1, token)
    failures = rules.write_ahead({}).failures
    return None if failures else tables_of(rules, 1)[1, 0]


ID = st.integers(0, VOCAB - 1)


@settings(max_examples=examples(60, 600), deadline=None)
@given(st.lists(st.tuples(st.lists(ID, max_size=3), st.lists(ID, max_size=QUERIES - 1)), min_size=1, max_size=5))
def test_tables_ahead_are_those_of_one_id_after_the_other(rounds):
    """Would catch a table a draft early or late, a table of the round before behind fewer drafts, rules that drafts are
    pushed on for good, and a forbidden draft or one behind which nothing may come that is let through."""
    rules, own = RowRules(ROWS, VOCAB, CPU, QUERIES), Near()
    rules.begin(1, own, torch.zeros(1, VOCAB))
    for pushed, drafts in rounds:
        for token in pushed:
            rules.push(1, token)
        written = list(own.written)
        failures, num_kept = rules.write_ahead({1: drafts})
        expected = [table_alone(written)]
        assert own.written == written
        if expected[0] is None:
            assert list(failures) == [1] and num_kept == {1: 0}
            return
        for place, draft in enumerate(drafts):
            behind = table_alone([*written, *drafts[: place + 1]])
            if expected[-1][draft] or behind is None:
                break
            expected.append(behind)
        assert not failures and num_kept == {1: len(expected) - 1}
        tables = tables_of(rules)
        assert torch.equal(tables[1, : len(expected)], torch.stack(expected))
        assert not tables[1, len(expected) :].any() and not tables[0].any() and not tables[2].any()


@pytest.mark.parametrize("last", [NOTHING, RAISES])
def test_drafts_are_cut_where_the_rules_stop(last):
    """Would catch a row that fails for what a draft brings about that may be wrong, and a failure that is swallowed
    once the id was written."""
    rules, own = RowRules(ROWS, VOCAB, CPU, QUERIES), Near((0,))
    rules.begin(0, own, torch.zeros(1, VOCAB))
    failures, num_kept = rules.write_ahead({0: [16, 18, last, 3]})
    assert not failures and num_kept == {0: 2}
    # 18 is a multiple of 3: anything may follow but a few.
    assert tables_of(rules)[0].any(1).tolist() == [True, True, True, False, False]
    for token in (16, 18, last):
        rules.push(0, token)
    failures, num_kept = rules.write_ahead({0: [4], 2: [5, 6]})
    assert num_kept == {0: 0, 2: 2}
    assert str(failures[0]).endswith("a defect" if last == RAISES else "the rules leave nothing to write")
    rules.end(0)
    assert not tables_of(rules).any() and not rules.write_ahead({}).failures


def test_a_forbidden_draft_is_cut_with_all_behind_it():
    """Would catch drafts behind a wrong one that are verified for nothing, and a row without rules that is cut."""
    rules = RowRules(ROWS, VOCAB, CPU, QUERIES)
    rules.begin(2, Near((1,)), torch.zeros(1, VOCAB))
    rules.begin(1, Near((1,)), torch.zeros(1, VOCAB))
    ahead = rules.write_ahead({2: [4, 7, 8], 0: [7, 7, 7, 7], 1: [20]})
    assert ahead.num_kept == {2: 1, 0: 4, 1: 0} and not ahead.failures
    assert tables_of(rules).any(2).tolist() == [
        [False] * 5,
        [True, False, False, False, False],
        [True, True, False, False, False],
    ]


def test_without_drafts_nothing_is_forked():
    """Would catch a copy of the rules for every step of a row that nobody drafts for, and stale tables behind it."""
    rules, own = RowRules(ROWS, VOCAB, CPU, QUERIES), Near((1,))
    first = rules.begin(1, own, torch.zeros(1, VOCAB))
    assert torch.equal(first.isinf()[0], table_alone([0, 1]))
    rules.write_ahead({1: [3, 5]})
    assert own.num_forks == 1
    assert rules.write_ahead({}).failures == {} and rules.write_ahead({1: []}) == ({}, {1: 0}) and own.num_forks == 1
    tables = tables_of(rules)
    assert torch.equal(tables[1, 0], table_alone([0, 1])) and not tables[1, 1:].any()


def test_more_drafts_than_queries_are_refused():
    """Would catch drafts that are cut in silence, so that the step verifies what no table was made for."""
    with pytest.raises(ValueError, match="drafts: row 1 has 5, and there are queries for 4"):
        RowRules(ROWS, VOCAB, CPU, QUERIES).write_ahead({0: [1], 1: [1] * 5})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_tables_ahead():
    """Would catch a copy that reads host memory after the next round has written it, or lands in another row."""
    on_gpu, on_cpu = (RowRules(ROWS, VOCAB, torch.device(name), QUERIES) for name in ("cuda", "cpu"))
    for rules, device in ((on_gpu, "cuda"), (on_cpu, "cpu")):
        for row in (0, 2):
            rules.begin(row, Near((row,)), torch.zeros(1, VOCAB, device=device))
    for drafts in ({0: [2, 4, 6, 8], 2: [4]}, {2: [4, 6, 8]}, {0: [NOTHING]}):
        assert on_gpu.write_ahead(drafts) == on_cpu.write_ahead(drafts)
        found = on_gpu.narrowed(torch.zeros(ROWS * QUERIES, VOCAB, device="cuda"))
        assert torch.equal(found.cpu(), on_cpu.narrowed(torch.zeros(ROWS * QUERIES, VOCAB)))
