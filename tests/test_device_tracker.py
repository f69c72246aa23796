"""The tracker on the device: the same words as the tracker in Python, whatever the ids."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from cuda_kernels import compile as loader
from cuda_kernels.device import CudaUnavailable
from cuda_kernels.follower import SpanFollower
from cuda_kernels.tracker import HEADER_CLOSED, IDLE, MALFORMED, PHASES, Grammar, SpanTracker
from selfspan_core.spans.protocol import PromptLayout
from selfspan_core.spans.render import render
from selfspan_core.spans.tracker import MAX_BODY_TOKENS, MAX_READS, Tracker
from tests.support.kernel_on_cpu import COMPILER
from tests.support.slow import examples
from tests.support.span_examples import FIRST_TEXT, MARKERS, PROMPT, STREAMS, VOCAB, worked_example
from tests.support.tracker_on_cpu import Follower, advance, push, stream

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++ to compile the tracker for the CPU")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GRAMMAR = Grammar(
    MARKERS.ref,
    MARKERS.go,
    MARKERS.res,
    MARKERS.end,
    MARKERS.eos,
    MARKERS.anchors,
    VOCAB,
    MAX_READS,
    MAX_BODY_TOKENS,
)


def start(layout, annotated=True):
    return GRAMMAR.start(layout.num_tokens, layout.scaffold_end, layout.segments, annotated)


def start_with_index(layout):
    track, segments = start(layout)
    return track, segments, GRAMMAR.see_index(track, layout.index, layout.head_tokens)


def expected_report(state):
    """What the tracker in Python says of an id, as the device reports it."""
    flags = MALFORMED * state.malformed | HEADER_CLOSED * state.header_closed
    return PHASES.index(state.phase.value) | flags, state.visible


def assert_same(layout, ids, annotated=True):
    tracker = Tracker(MARKERS, layout, annotated)
    has_index = layout.head_tokens is not None and annotated
    track, segments, index = start_with_index(layout) if has_index else (*start(layout, annotated), None)
    intervals, counts, reports = stream(GRAMMAR, (track, segments), ids, index)
    for number, token in enumerate(ids):
        report, visible = expected_report(tracker.push(token))
        assert reports[number] == report, (number, ids[: number + 1])
        assert intervals[number, : counts[number]].tolist() == [list(interval) for interval in visible]


@needs_compiler
@pytest.mark.parametrize("annotated", [True, False])
@settings(max_examples=examples(200, 500), deadline=None)
@given(STREAMS)
def test_same_as_python_near_the_grammar(annotated, ids):
    """Would catch any difference in how a step breaks: what is flagged, what is citable, what is seen."""
    if ids:
        assert_same(PROMPT, ids, annotated)
        for head_tokens in (1, 3):
            assert_same(replace(PROMPT, head_tokens=head_tokens), ids, annotated)


def adversarial(rng, length):
    """Ids that come close to the grammar: whole steps of known and unknown names, cut, doubled, or with a wrong id."""
    ids = []
    while len(ids) < length:
        names = rng.sample(MARKERS.anchors, rng.randint(0, MAX_READS + 2))
        body = [
            rng.randrange(FIRST_TEXT, VOCAB)
            for _ in range(rng.choice([0, 1, 3, 12, 600 if rng.random() < 0.05 else 5]))
        ]
        result = [MARKERS.res] * rng.choice([0, 1, 1, 1, 2]) + [rng.randrange(FIRST_TEXT, VOCAB)] * rng.randint(0, 3)
        step = [MARKERS.ref, *names, MARKERS.go, *body, *result, MARKERS.end]
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            place = rng.randrange(len(step))
            step[place : place + rng.randint(0, 1)] = [rng.randrange(3, VOCAB)]
        ids += step
    return ids


@needs_compiler
@pytest.mark.parametrize("seed", range(4))
def test_same_as_python_on_a_million_ids(seed):
    """Would catch what happens once in a hundred thousand ids: all names taken, a bound that is off by one."""
    rng = random.Random(seed)
    total = 0
    while total < 250_000:
        # Few names known, or nearly all; scaffolds of any length, none included.
        known = rng.sample(MARKERS.anchors, rng.choice([0, 2, 5, len(MARKERS.anchors) - 1]))
        edges = sorted(rng.sample(range(1, 400), 2 * len(known)))
        segments = {name: (edges[2 * i], edges[2 * i + 1]) for i, name in enumerate(known)}
        layout = PromptLayout(400, rng.choice([0, 1, 5, 300]), segments, rng.choice([None, 1, 2, 50]))
        ids = adversarial(rng, rng.choice([30, 300, 3000]))
        assert_same(layout, ids, rng.random() < 0.8)
        total += len(ids)


@needs_compiler
def test_rows_do_not_know_of_each_other():
    """Would catch rows that share a state, an idle row that sees something, or ids read from the wrong row."""
    examples = [render(worked_example(seed), MARKERS) for seed in range(5)]
    states = [start(rendered.prompt) for rendered in examples]
    tracks, segments = (torch.stack(parts).contiguous() for parts in zip(*states, strict=True))
    tracks[3, 1] = IDLE
    trackers = [Tracker(MARKERS, rendered.prompt) for rendered in examples]
    answers = [rendered.ids[rendered.prompt.num_tokens :] for rendered in examples]
    for step in range(min(map(len, answers))):
        ids = torch.tensor([answer[step] for answer in answers])
        intervals, counts, positions, reports = push(GRAMMAR, tracks, segments, ids, GRAMMAR.max_intervals + 3, False)
        for row, tracker in enumerate(trackers):
            if row == 3:
                assert (counts[row], positions[row], reports[row]) == (0, -1, IDLE)
                continue
            state = tracker.push(answers[row][step])
            report, visible = expected_report(state)
            assert (reports[row], positions[row]) == (report, state.position)
            assert intervals[row, : counts[row]].tolist() == [list(interval) for interval in visible]
            assert (intervals[row, counts[row] :] == -7).all()


@needs_compiler
def test_rows_with_an_index_beside_rows_without():
    """Would catch an index that is read from another row, one that is written to where there is none, and a dense lane
    whose headers see an index."""
    layouts = [
        replace(render(worked_example(seed), MARKERS).prompt, head_tokens=2 if seed % 2 else None) for seed in range(4)
    ]
    answers = [render(worked_example(seed), MARKERS).ids[layout.num_tokens :] for seed, layout in enumerate(layouts)]
    for is_dense in (False, True):
        tracks, segments = (torch.stack(parts).contiguous() for parts in zip(*map(start, layouts), strict=True))
        indexes = torch.full((4, GRAMMAR.max_index, 2), -7, dtype=torch.int32)
        for row in (1, 3):
            tracks[row], segments[row], indexes[row] = start_with_index(layouts[row])
        trackers, max_spans = [Tracker(MARKERS, layout) for layout in layouts], GRAMMAR.max_spans(True)
        for step in range(min(map(len, answers))):
            ids = torch.tensor([answer[step] for answer in answers])
            intervals, counts, _, _ = push(GRAMMAR, tracks, segments, ids, max_spans, is_dense, indexes)
            for row, tracker in enumerate(trackers):
                state = tracker.push(answers[row][step])
                visible = ((0, state.position + 1),) if is_dense else state.visible
                assert intervals[row, : counts[row]].tolist() == [list(interval) for interval in visible]
        assert (indexes[[0, 2]] == -7).all()


@needs_compiler
def test_a_dense_lane_sees_everything():
    """Would catch a dense lane that reads less than it says."""
    rendered = render(worked_example(1), MARKERS)
    track, segments = start(rendered.prompt)
    first = rendered.prompt.num_tokens
    for position, token in enumerate(rendered.ids[first:], start=first):
        intervals, counts, _, _ = push(GRAMMAR, track[None], segments[None], torch.tensor([token]), 10, True)
        assert counts.tolist() == [1] and intervals[0, 0].tolist() == [0, position + 1]


@needs_compiler
def test_rows_go_idle_at_their_end_and_the_ring_remembers():
    """Would catch a row that writes on behind its end, over its neighbour's cache; an id that nobody ever reads; or a
    script that is not followed."""
    states = [start(PROMPT) for _ in range(4)]
    tracks, _ = (torch.stack(parts).contiguous() for parts in zip(*states, strict=True))
    tracks[3, 1] = IDLE
    # The prompts end at position 11: two more places for row 1, and plenty for the others.
    limits = torch.tensor([90, 13, 90, 90], dtype=torch.int32)
    ring, step = torch.full((3, 4), -9), torch.zeros(1, dtype=torch.int32)
    scripts = torch.full((4, 15), -1, dtype=torch.int32)
    scripts[2, 13], scripts[3, 12] = 7, 8
    draws = [[40, 41, 42, 43], [MARKERS.eos, 44, 45, 46], [47, 48, 49, 50], [51, 52, 53, 54]]
    written = []
    for number, draw in enumerate(draws):
        ids = torch.tensor(draw)
        advance(GRAMMAR, ids, tracks, scripts, limits, ring, step)
        assert ids[2] == (7 if number == 1 else draw[2]), "a script has to reach the next step"
        written.append(ring[number % 3].tolist())
        tracks[tracks[:, 1] != IDLE, 0] += 1  # as the tracker does with the next id
    assert written == [[40, 41, 42, -1], [MARKERS.eos, 44, 7, -1], [-1, -1, 49, -1], [-1, -1, 53, -1]]
    assert step.item() == 4 and (tracks[:, 1] == IDLE).tolist() == [True, True, False, True]
    assert ring[1].tolist() == written[1] and ring[0].tolist() == written[3]


@pytest.mark.parametrize("architecture", loader.ARCHITECTURES)
def test_compiles_for_every_architecture(architecture):
    """Would catch an instruction that a Turing or a Blackwell GPU does not have."""
    assert "spill" in loader.compile_for(GRAMMAR.macros(), architecture, "tracker.cu")[1]


def test_without_a_gpu_the_reason_is_given():
    """Would catch a silent fallback."""
    with pytest.raises(CudaUnavailable, match="need a CUDA device, not 'cpu'"):
        SpanTracker(GRAMMAR, 2, "cpu")


@pytest.mark.gpu
@needs_cuda
def test_gpu_same_as_python():
    """Would catch a launcher that hands over the wrong tensor, or a state that is lost between launches."""
    tracker = SpanTracker(GRAMMAR, 40)
    layouts, streams = [], []
    rng = random.Random(7)
    for row in range(40):
        layouts.append(PROMPT)
        streams.append(adversarial(rng, 200)[:200])
        tracker.set(row, *start(PROMPT))
    in_python = [Tracker(MARKERS, layout) for layout in layouts]
    intervals = torch.zeros(40, 12, 2, dtype=torch.int32, device="cuda")
    counts, positions, reports = torch.zeros(3, 40, dtype=torch.int32, device="cuda")
    for step in range(200):
        tracker.push(torch.tensor([ids[step] for ids in streams], device="cuda"), intervals, counts, positions, reports)
        for row, other in enumerate(in_python):
            state = other.push(streams[row][step])
            report, visible = expected_report(state)
            assert (reports[row].item(), positions[row].item()) == (report, state.position)
            assert intervals[row, : counts[row]].tolist() == [list(interval) for interval in visible]
    tracker.clear([5])
    tracker.push(torch.tensor([ids[0] for ids in streams], device="cuda"), intervals, counts, positions, reports)
    assert counts[5].item() == 0 and positions[5].item() == -1 and counts[6].item() > 0
    with pytest.raises(ValueError, match="intervals has room for 3 a row, and 10 are needed"):
        ids = torch.zeros(40, dtype=torch.int64, device="cuda")
        tracker.push(ids, intervals[:, :3].contiguous(), counts, positions, reports)


@pytest.mark.gpu
@needs_cuda
def test_gpu_index_same_as_python():
    """Would catch an index that the launcher does not hand over, or hands over to a row of another."""
    tracker, layout = SpanTracker(GRAMMAR, 40, with_index=True), replace(PROMPT, head_tokens=2)
    rng = random.Random(8)
    streams = [adversarial(rng, 300)[:300] for _ in range(40)]
    for row in range(40):
        tracker.set(row, *start_with_index(layout))
    in_python = [Tracker(MARKERS, layout) for _ in streams]
    intervals = torch.zeros(40, GRAMMAR.max_spans(True), 2, dtype=torch.int32, device="cuda")
    counts, positions, reports = torch.zeros(3, 40, dtype=torch.int32, device="cuda")
    for step in range(300):
        tracker.push(torch.tensor([ids[step] for ids in streams], device="cuda"), intervals, counts, positions, reports)
        seen, num = intervals.tolist(), counts.tolist()
        for row, other in enumerate(in_python):
            visible = other.push(streams[row][step]).visible
            assert seen[row][: num[row]] == [list(interval) for interval in visible]
    with pytest.raises(ValueError, match="index: this tracker was made without"):
        SpanTracker(GRAMMAR, 2).set(0, *start_with_index(layout))


@pytest.mark.gpu
@needs_cuda
def test_gpu_follows_rows_in_any_order():
    """Would catch a launcher that hands over the wrong tensor, or a row that goes on with another's state."""
    rng = random.Random(8)
    streams = [adversarial(rng, 60)[:60] for _ in range(70)]
    there, here = SpanFollower(GRAMMAR, 70), Follower(GRAMMAR, 70)
    for slot in range(70):
        there.set(slot, *start(PROMPT))
        here.set(slot, *start(PROMPT))
    for step in range(60):
        ids = torch.tensor([ids[step] for ids in streams], dtype=torch.int32)
        slots = rng.sample(range(70), 70)
        rows = [(slot, slot, 0) if rng.random() < 0.8 else (0, -1, rng.randrange(3)) for slot in slots]
        queries = torch.tensor(rows, dtype=torch.int32).t().contiguous()
        found = [torch.full(shape, -7, dtype=torch.int32) for shape in ((70, 12, 2), (70,))]
        there_found = [x.cuda() for x in found]
        here.push(ids, queries, *found)
        there.push(ids.cuda(), queries.cuda(), *there_found)
        assert all(torch.equal(x, y.cpu()) for x, y in zip(found, there_found, strict=True))
    with pytest.raises(ValueError, match="intervals has room for 3 a query, and 10 are needed"):
        there.push(ids.cuda(), queries.cuda(), there_found[0][:, :3].contiguous(), there_found[1])


def test_a_follower_without_a_gpu_gives_the_reason():
    """Would catch a silent fallback."""
    with pytest.raises(CudaUnavailable, match="need a CUDA device, not 'cpu'"):
        SpanFollower(GRAMMAR, 2, "cpu")
