"""Drafts on the device: the same proposals, visibility and acceptance as in Python, whatever was written."""

import random
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_kernels.drafts import MAX_QUERIES, OWN_DRAFTS, FixedWords, order_at_start
from cuda_kernels.tracker import IDLE, Grammar
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.drafts import Drafter, DraftState, verifiable
from selfspan_core.engine.hints import DraftHints
from selfspan_core.spans.protocol import PromptLayout
from selfspan_core.spans.render import render
from selfspan_core.spans.tracker import MAX_BODY_TOKENS, MAX_READS, State, Tracker
from tests.support.attention_problem import needs_cuda
from tests.support.drafts_on_cpu import Rows
from tests.support.drafts_on_gpu import GpuRows
from tests.support.kernel_on_cpu import COMPILER
from tests.support.slow import examples
from tests.support.span_examples import FIRST_TEXT, MARKERS, STREAMS, VOCAB, worked_example

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++ to compile the kernels for the CPU")
GRAMMAR = Grammar(
    *(MARKERS.ref, MARKERS.go, MARKERS.res, MARKERS.end, MARKERS.eos, MARKERS.anchors),
    *(VOCAB, MAX_READS, MAX_BODY_TOKENS),
)
HINTS = (
    DraftHints(2, frozenset(range(FIRST_TEXT, FIRST_TEXT + 8)), (FIRST_TEXT + 30, MARKERS.res)),
    DraftHints(1, frozenset(), (MARKERS.end,)),
    DraftHints(3),
)
LENGTH = 400


@dataclass
class Reference:
    """One row in Python."""

    ids: list[int]
    layout: PromptLayout
    annotated: bool
    drafter: Drafter
    stream: list[int]
    num_written: int = 1
    tracker: Tracker = field(init=False)
    state: State = field(init=False)

    def __post_init__(self):
        self.tracker = Tracker(MARKERS, self.layout, self.annotated)
        self.state = self.tracker.push(self.stream[0])
        self.ids = [*self.ids[: self.layout.num_tokens], self.stream[0]]

    def propose(self, most, injected=None):
        """Drafts that can be verified, and the states of all queries."""
        if most < 1:
            return [], [self.state]
        drafts = injected
        if injected is None:
            drafts = self.drafter.propose(DraftState(self.ids, self.layout.num_tokens, self.tracker, self.state), most)
        drafts, states = verifiable(list(drafts)[:most], self.tracker, self.state, VOCAB, max_bodies=2)
        return list(drafts), [self.state, *states]

    def keep(self, tokens):
        for token in tokens:
            self.state = self.tracker.push(token)
            self.ids.append(token)
        self.num_written += len(tokens)


def make_rows(seeds, hints, annotated, streams=None, kind=Rows.idle):
    """Random worked examples, one per row, in both forms."""
    rows = kind(GRAMMAR, len(seeds) + 1, LENGTH)
    words = FixedWords(hints.num_reads, tuple(sorted(hints.between)), hints.behind)
    references = []
    for row, seed in enumerate(seeds):
        rendered = render(worked_example(seed, num_segments=2 + seed % 6), MARKERS)
        layout = rendered.prompt
        stream = (streams or {}).get(row) or rendered.ids[layout.num_tokens :]
        rows.begin(row, rendered.ids, layout, annotated, words, stream[0])
        drafter = DeviceDrafts(hints).drafter(MARKERS, annotated)
        references.append(Reference(rendered.ids, layout, annotated, drafter, stream))
    return rows, references


def visible_by_mask(rows, row, query, position):
    """What the table says that a query sees."""
    buffers, count = rows.buffers, int(rows.buffers.counts[row])
    seen = set()
    spans, masks = buffers.intervals[row, :count].tolist(), buffers.masks[row, :count].tolist()
    for (start, end), mask in zip(spans, masks, strict=True):
        assert start < end and mask > 0
        if mask >> query & 1:
            seen.update(range(start, min(end, position + 1)))
    ordered = buffers.intervals[row, :count].flatten().tolist()
    assert ordered == sorted(ordered)
    return seen


def assert_same_round(rows, row, reference, drafts, states, num_queries, is_dense):
    buffers = rows.buffers
    ids = buffers.ids(num_queries).view(-1, num_queries)[row].tolist()
    positions = buffers.positions(num_queries).view(-1, num_queries)[row].tolist()
    assert int(buffers.num_drafts[row]) == len(drafts), (drafts, ids)
    num_pads = num_queries - 1 - len(drafts)
    assert ids == [reference.ids[-1], *drafts, *[0] * num_pads]
    first = len(reference.ids) - 1
    assert positions == [*range(first, first + 1 + len(drafts)), *[-1] * num_pads]
    assert int(buffers.first_positions[row]) == first
    for query, state in enumerate(states):
        visible = ((0, state.position + 1),) if is_dense else state.visible
        wanted = {position for start, end in visible for position in range(start, end)}
        assert visible_by_mask(rows, row, query, state.position) == wanted
    assert all(mask < 1 << len(states) for mask in buffers.masks[row, : buffers.counts[row]].tolist())


def run_rounds(rows, references, num_queries, is_dense, rng, injected=None):
    """Rounds until all streams are written; what is drawn follows the streams. Returns how many there were."""
    live = dict(enumerate(references))
    num_rounds = 0
    while live and num_rounds < 500:
        num_rounds += 1
        num = num_queries if num_rounds % 5 else 1  # passes of several sizes take turns
        given = {row: injected(rng) if injected else None for row in live}
        for row, drafts in given.items():
            if drafts is not None:
                rows.buffers.injected[row] = torch.tensor([*drafts, *[-1] * MAX_QUERIES][: MAX_QUERIES - 1])
        rows.draft(num, is_dense)
        drawn = torch.full((len(rows.tracks), num), VOCAB - 1)
        wanted = {}
        for row, reference in live.items():
            most = min(num - 1, int(rows.limits[row]) - len(reference.ids))
            drafts, states = reference.propose(most, given[row])
            assert_same_round(rows, row, reference, drafts, states, num, is_dense)
            following = reference.stream[reference.num_written :][: len(states)]
            drawn[row, : len(following)] = torch.tensor(following)
            kept = 0
            while kept < len(following):
                kept += 1
                at_end = following[kept - 1] == MARKERS.eos
                if at_end or kept > len(drafts) or drafts[kept - 1] != following[kept - 1]:
                    break
            wanted[row] = (following[:kept], len(drafts))
        idle = len(references)
        assert rows.buffers.counts[idle] == 0 and (rows.buffers.positions(num).view(-1, num)[idle] == -1).all()
        found = rows.accept(num, drawn)
        assert found[idle] == [-1] * 16 + [0]
        for row, (tokens, num_drafts) in wanted.items():
            reference = live[row]
            assert found[row] == [*tokens, *[-1] * (16 - len(tokens)), num_drafts]
            reference.keep(tokens)
            if tokens[-1] == MARKERS.eos or len(reference.stream) == reference.num_written:
                rows.tracks[row, 1] = IDLE
                del live[row]
    assert not live
    return num_rounds


@needs_compiler
@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("hints", HINTS)
@pytest.mark.parametrize("is_dense", [True, False])
def test_worked_examples(annotated, hints, is_dense):
    """Would catch any proposal that is not the specification's, and any query that sees more or less than it may."""
    rng = random.Random(3)
    for first in range(examples(2, 40)):
        rows, references = make_rows([3 * first, 3 * first + 1, 3 * first + 2], hints, annotated)
        run_rounds(rows, references, rng.choice([4, 8, 16]), is_dense, rng)


@needs_compiler
@settings(max_examples=examples(60, 600), deadline=None)
@given(STREAMS, st.sampled_from(HINTS), st.integers(0, 30), st.booleans())
def test_streams_near_the_grammar(ids, hints, seed, annotated):
    """Would catch a state that a broken step leaves behind: a name, an order, an interval of a step that was undone."""
    stream = [*[token for token in ids if token != MARKERS.eos], FIRST_TEXT, MARKERS.eos]
    rows, references = make_rows([seed], hints, annotated, {0: stream})
    run_rounds(rows, references, 16, False, random.Random(seed))


def adversarial_drafts(rng):
    """Markers, text, ids that the model does not have, the end of the sequence, nothing at all."""
    choices = [MARKERS.ref, MARKERS.go, MARKERS.res, MARKERS.end, MARKERS.eos, *MARKERS.anchors[:8]]
    drafts = [rng.choice([*choices, rng.randrange(FIRST_TEXT, VOCAB)]) for _ in range(rng.randint(0, 20))]
    if rng.random() < 0.2 and drafts:
        drafts[rng.randrange(len(drafts))] = VOCAB + rng.randint(0, 5)
    step = [MARKERS.ref, rng.choice(MARKERS.anchors[:3]), rng.choice(MARKERS.anchors[10:]), MARKERS.go, 40, MARKERS.end]
    return rng.choice([drafts, step * 3, [*drafts[:2], *step, *step]])


@needs_compiler
@pytest.mark.parametrize("is_dense", [True, False])
def test_injected_drafts(is_dense):
    """Would catch a draft that is fed though it cannot be, one that leaves its name in the tracker, or a table of two
    bodies and two headers in one pass that mixes them up."""
    rng = random.Random(5)
    for first in range(examples(12, 100)):
        rows, references = make_rows([first, first + 100], HINTS[0], True)
        run_rounds(rows, references, rng.choice([2, 7, 16]), is_dense, rng, adversarial_drafts)


@needs_compiler
def test_drafts_end_where_the_row_does():
    """Would catch a draft behind a row's last place, over its neighbour's text."""
    rows, references = make_rows([4], HINTS[1], True)
    start = references[0].layout.num_tokens
    rows.limits[0] = start + 5
    run = 0
    while rows.tracks[0, 1] != IDLE:
        rows.draft(8)
        position = int(rows.buffers.first_positions[0])
        assert position + int(rows.buffers.num_drafts[0]) < start + 5
        drawn = rows.buffers.ids(8).view(2, 8).roll(-1, 1)  # every draft is right
        written = [token for token in rows.accept(8, drawn)[0][:-1] if token >= 0]
        run += len(written)
    assert run == 5


@needs_compiler
def test_a_script_is_what_is_drawn():
    """Would catch a replay that keeps drafts of its own instead of the recorded text."""
    rows, references = make_rows([7], HINTS[0], True)
    stream, start = references[0].stream, references[0].layout.num_tokens
    rows.scripts[0, start : start + len(stream)] = torch.tensor(stream, dtype=torch.int32)
    written = [stream[0]]
    while rows.tracks[0, 1] != IDLE:
        rows.draft(16)
        written += [token for token in rows.accept(16, torch.full((2, 16), FIRST_TEXT))[0][:-1] if token >= 0]
    assert written == stream


def test_too_many_fixed_words_are_refused():
    """Would catch words that are written over the row's state."""
    for words in (
        FixedWords(0),
        FixedWords(MAX_READS + 1),
        FixedWords(1, tuple(range(9))),
        FixedWords(1, (), (1,) * 9),
    ):
        with pytest.raises(ValueError, match="fixed words"):
            order_at_start(GRAMMAR, {}, words)


@needs_compiler
def test_the_device_needs_no_more_than_its_own_drafts():
    """Would catch rows that wait for drafts from the host that never come."""
    rows, _ = make_rows([1], HINTS[0], True)
    assert (rows.buffers.injected == OWN_DRAFTS).all()
    rows.draft(16)
    assert rows.buffers.num_drafts[0] > 0


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("is_dense", [True, False])
@pytest.mark.parametrize("annotated", [True, False])
def test_gpu_same_as_python(annotated, is_dense):
    """Would catch threads that read what another is about to write: a CPU runs them in turn."""
    rng = random.Random(8)
    for first in range(4):
        hints = HINTS[first % len(HINTS)]
        rows, references = make_rows(range(9 * first, 9 * first + 9), hints, annotated, kind=GpuRows)
        injected = adversarial_drafts if first == 3 else None
        run_rounds(rows, references, rng.choice([4, 8, 16]), is_dense, rng, injected)
