"""Headers and bodies of steps that recur: what is guessed of them, and that it is right where steps are regular."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.engine.drafters import SpanSource, drafter
from selfspan_core.engine.drafts import DraftState, verifiable
from selfspan_core.engine.hints import DraftHints
from selfspan_core.engine.recurring import Recurrence
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.spans.render import Rendered
from selfspan_core.spans.tracker import Phase, Tracker
from selfspan_core.tasks.registry import get_task
from selfspan_core.tasks.trace.task import random_problem
from tests.support.paths import SHIPPED

TASK, TOKENIZER = get_task("trace"), SpanTokenizer.load(SHIPPED)
MARKERS = TOKENIZER.markers
VOCAB_SIZE = TOKENIZER.vocab_size
LOOP = "total = 0\nfor i in range(9):\n    total += i\nprint(total)"


def rendered(text: str) -> Rendered:
    return TASK.render(TASK.parse(text), TOKENIZER, annotated=True, with_steps=True)


def passes(example: Rendered, hints: DraftHints) -> int:
    """Forward passes until all of an example is written, the longest prefix of drafts that is right being kept."""
    proposer, tracker = drafter(MARKERS, True, hints, 15, None), Tracker(MARKERS, example.prompt)
    at = example.prompt.num_tokens + 1
    state, count = tracker.push(example.ids[at - 1]), 0
    while at < len(example.ids):
        drafts = proposer.propose(DraftState(example.ids[:at], example.prompt.num_tokens, tracker, state), 15)
        assert len(drafts) <= 15
        drafts, _ = verifiable(drafts, tracker, state, VOCAB_SIZE)
        right = next((n for n, (a, b) in enumerate(zip(drafts, example.ids[at:], strict=False)) if a != b), len(drafts))
        for token in example.ids[at : at + right + 1]:
            state = tracker.push(token)
        at, count = at + right + 1, count + 1
    return count


def test_a_loop_is_foreseen():
    """Would catch reads that stand for the last round's values, or a place that follows another than in the loop."""
    example = rendered(LOOP)
    tracker, recurrence = Tracker(MARKERS, example.prompt), Recurrence()
    foreseen, at = [], example.prompt.num_tokens
    for position in range(at, len(example.ids)):
        state = tracker.push(example.ids[position])
        recurrence.follow(tracker, example.ids[: position + 1])
        if state.phase is Phase.BETWEEN:
            foreseen.append(tuple(recurrence.header(())))
    reads = [step.reads for step in tracker.steps]
    # Assignment, loop, body, loop, body: from then on each header is known before it is written.
    assert foreseen[4:19] == reads[5:20] and foreseen[0] == ()
    assert recurrence.body(reads[4]) == recurrence.body(reads[2]) != ()


def test_fewer_passes_where_steps_recur():
    """Would catch candidates that are never the best, and so of no use."""
    example = rendered(LOOP)
    assert passes(example, DraftHints(2, recurs=True)) < 0.75 * passes(example, DraftHints(2))


@given(st.integers(0, 2**32), st.integers(10, 60))
@settings(max_examples=15, deadline=None)
def test_any_program_can_be_drafted(seed, size):
    """Would catch a name, a place or a body that is not there where one is looked for."""
    problem = random_problem(random.Random(seed), size)
    example = TASK.render(problem, TOKENIZER, annotated=True, offset=seed % 256, with_steps=True)
    assert passes(example, DraftHints(2, recurs=True)) > 0


@given(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=120), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_broken_text_can_be_drafted(noise, seed):
    """Would catch a drafter that raises on steps that are malformed, which ends a request."""
    example, rng = rendered(LOOP), random.Random(seed)
    structure = [MARKERS.ref, MARKERS.go, MARKERS.res, MARKERS.end, *MARKERS.anchors[:9]]
    cut = rng.randrange(example.prompt.num_tokens + 1, len(example.ids))
    ids = [*example.ids[:cut], *(rng.choice((one, *structure)) for one in noise)]
    source, tracker = SpanSource(MARKERS, DraftHints(2, recurs=True)), Tracker(MARKERS, example.prompt)
    for position in range(example.prompt.num_tokens, len(ids)):
        state = tracker.push(ids[position])
        for found in source.candidates(DraftState(ids[: position + 1], example.prompt.num_tokens, tracker, state), 15):
            assert all(0 <= draft.token < VOCAB_SIZE for draft in found)


def test_other_tasks_are_drafted_as_before():
    """Would catch candidates of steps that recur in a task that has none, where a GPU would draft another way."""
    assert not get_task("arithmetic").draft_hints(TOKENIZER).recurs
    example = rendered(LOOP)
    tracker, source = Tracker(MARKERS, example.prompt), SpanSource(MARKERS, DraftHints(2))
    for position in range(example.prompt.num_tokens, len(example.ids)):
        state = tracker.push(example.ids[position])
        for found in source.candidates(DraftState(example.ids[: position + 1], 0, tracker, state), 15):
            assert not {"next place", "next read"} & {draft.kind for draft in found}
