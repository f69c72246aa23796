"""The tracker: exact on the grammar, unbreakable off it."""

import random
import sys

import pytest
from hypothesis import given, settings

from selfspan_core.spans import protocol
from selfspan_core.spans.render import Example, Part, Step, render, render_plain
from selfspan_core.spans.tracker import MAX_BODY_TOKENS, MAX_READS, Phase, Tracker
from tests.support import interval_tools
from tests.support.slow import examples
from tests.support.span_examples import FIRST_TEXT, MARKERS, PROMPT, STREAMS, text, worked_example

REF, GO, RES, END, EOS = MARKERS.ref, MARKERS.go, MARKERS.res, MARKERS.end, MARKERS.eos
A = MARKERS.anchors
X = FIRST_TEXT


def track(ids, annotated=True):
    """Push all ids; returns the tracker and the states."""
    tracker = Tracker(MARKERS, PROMPT, annotated)
    return tracker, [tracker.push(token) for token in ids]


def phases(states):
    return [state.phase.value for state in states]


def characters(string):
    return tuple(X + "0123456789+*= Calcute:".index(c) for c in string)


# ---- the grammar


def design_example():
    parts = (
        Part(characters("79"), A[0]),
        Part(characters("*")),
        Part(characters("36"), A[1]),
        Part(characters("+")),
        Part(characters("63"), A[2]),
        Part(characters("=")),
    )
    steps = (
        Step((A[0], A[1]), A[3], characters("79*36=2370+474="), characters("2844")),
        Step((A[3], A[2]), A[4], characters("2844+63="), characters("2907")),
    )
    return Example((MARKERS.bos, *characters("Ca")), parts, steps)


def test_the_documented_example_counted_by_hand():
    """79*36+63 with positions counted on paper; would catch any shift of a segment, a header or a body."""
    rendered = render(design_example(), MARKERS)
    assert rendered.prompt.num_tokens == 15
    assert rendered.prompt.segments == {A[0]: (3, 6), A[1]: (7, 10), A[2]: (11, 14)}
    seen = rendered.visibility
    assert rendered.ids[15:21] == [REF, A[0], A[1], A[3], GO, *characters("7")]
    # Prompt and first header, <|go|> included: everything so far.
    assert seen[:20] == [((0, p + 1),) for p in range(20)]
    # First body: scaffold [0, 3) touches a0's segment [3, 6); then a1; then its own step from <|ref|> at 15.
    assert seen[20] == ((0, 6), (7, 10), (15, 21))
    assert rendered.ids[35] == RES and seen[35] == ((0, 6), (7, 10), (15, 36))
    assert rendered.ids[39:41] == [*characters("4"), END] and seen[39] == ((0, 6), (7, 10), (15, 40))
    # <|end|> decides what comes next: everything.
    assert seen[40] == ((0, 41),)
    # Second body: scaffold, a2, the first step's citable part [35, 40) from <|res|> up to <|end|>, its own step.
    assert seen[46] == ((0, 3), (11, 14), (35, 40), (41, 47))
    assert rendered.ids[59:] == [END, EOS] and seen[59:] == [((0, 60),), ((0, 61),)]
    assert len(rendered.ids) == 61


@pytest.mark.parametrize("seed", range(6))
def test_what_is_served_is_what_was_trained(seed):
    """A tracker fed a training row one id at a time, as the engine does, gives that row's visibility."""
    rendered = render(worked_example(seed), MARKERS)
    start = rendered.prompt.num_tokens
    tracker = Tracker(MARKERS, rendered.prompt)
    served = [tracker.push(token).visible for token in rendered.ids[start:]]
    assert served == rendered.visibility[start:]
    assert tracker.num_malformed == 0
    assert [step.malformed for step in tracker.steps] == [False] * 8


def test_without_a_citable_marker_the_whole_body_is_citable():
    """Would catch a step without <|res|> that nobody can read afterwards."""
    tracker, _ = track([REF, A[5], GO, X, X, END])
    assert tracker.segments[A[5]] == (15, 17)
    assert not tracker.num_malformed


def test_records_say_where_things_are():
    """Would catch records that highlight the wrong text in the app."""
    tracker, states = track([REF, A[0], A[5], GO, X, RES, X + 1, END])
    (record,) = tracker.steps
    assert (record.start, record.body_start, record.result_start, record.end) == (12, 16, 17, 20)
    assert (record.reads, record.name, record.intervals) == ((A[0],), A[5], ((0, 6),))
    assert [state.header_closed for state in states] == [False] * 3 + [True] + [False] * 4
    assert [state.step for state in states] == [0] * 7 + [-1]


def test_reading_a_segment_twice_weighs_it_once():
    """Would catch duplicated keys, which attention would weigh twice."""
    _, states = track([REF, A[1], A[1], A[5], GO, X])
    assert states[-1].visible == ((0, 3), (7, 9), (12, 18))


# ---- off the grammar

MALFORMED = {
    "text outside any step": [X],
    "names nothing": [REF, GO],
    "a name that nothing has": [REF, A[9], A[5], GO, X, END],
    "a name that is taken": [REF, A[0], A[1], GO, X, END],
    "more than": [REF, *A[: MAX_READS + 2], GO, X, END],
    "something other than names": [REF, A[0], X, A[5], GO, X, END],
    "nothing to cite": [REF, A[5], GO, X, RES, END],
    "a body holds a marker": [REF, A[5], GO, X, A[0], END],
    "the sequence ended inside a step": [REF, A[5], GO, X, EOS],
}


@pytest.mark.parametrize("problem", MALFORMED)
def test_malformed_is_flagged_once_and_sees_everything(problem):
    """Would catch a broken step that goes unnoticed, counts twice, or goes on reading a part only."""
    tracker, states = track(MALFORMED[problem])
    assert problem in tracker.problem
    assert tracker.num_malformed == sum(state.malformed for state in states) == 1
    assert tracker.steps[-1].malformed
    broken_at = [state.malformed for state in states].index(True)
    for state in states[broken_at:]:
        assert state.visible == ((0, state.position + 1),)
    assert set(tracker.segments) == set(A[:3]), "a malformed step became citable"


@pytest.mark.parametrize("problem", sorted(set(MALFORMED) - {"the sequence ended inside a step"}))
def test_the_next_step_is_whole_again(problem):
    """Would catch a tracker that never finds back into the grammar."""
    good = [REF, A[2], A[5], GO, X, RES, X, END]
    tracker, states = track([*MALFORMED[problem], *good])
    assert phases(states)[-len(good) :] == ["header"] * 4 + ["body"] * 3 + ["between"]
    assert tracker.num_malformed == 1
    assert A[5] in tracker.segments


def test_no_body_at_all_has_nothing_to_cite():
    """Would catch an empty segment that a later step reads."""
    tracker, states = track([REF, A[5], GO, END])
    assert "nothing to cite" in tracker.problem and states[-1].malformed
    assert A[5] not in tracker.segments


def test_a_header_may_name_as_many_as_it_may():
    """MAX_READS reads are fine, one more is not: would catch an off-by-one in the bound."""
    steps = [token for i in range(3, MAX_READS) for token in (REF, A[i], GO, X, END)]
    tracker, _ = track([*steps, REF, *A[:MAX_READS], A[MAX_READS], GO, X, END])
    assert tracker.num_malformed == 0
    assert tracker.steps[-1].reads == A[:MAX_READS]


def test_an_endless_header_breaks_and_an_endless_break_ends():
    """Would catch a state without a length bound."""
    _, states = track([REF, *[A[0]] * (3 * MAX_BODY_TOKENS)])
    assert phases(states)[: MAX_READS + 2] == ["header"] * (MAX_READS + 2)
    assert states[MAX_READS + 2].malformed
    assert longest_run(phases(states), "broken") <= MAX_BODY_TOKENS
    assert phases(states)[MAX_BODY_TOKENS] == "between"


def test_an_endless_body_breaks():
    """Would catch a body that never ends, and with it a workspace that grows without end."""
    tracker, states = track([REF, A[5], GO, *[X] * (2 * MAX_BODY_TOKENS)])
    assert longest_run(phases(states), "body") == MAX_BODY_TOKENS
    assert states[3 + MAX_BODY_TOKENS].malformed
    assert "longer than" in tracker.problem or "outside" in tracker.problem


def longest_run(names, name):
    longest = current = 0
    for each in names:
        current = current + 1 if each == name else 0
        longest = max(longest, current)
    return longest


@pytest.mark.parametrize("before", [[REF, A[0]], [REF, A[5], GO, X]])
def test_a_step_opened_inside_a_step_breaks_it(before):
    """Nested <|ref|>: flagged, full visibility, and the one after it opens a new step."""
    tracker, states = track([*before, REF, REF, A[6], GO, X, END])
    assert phases(states)[len(before) :] == ["broken", "header", "header", "header", "body", "between"]
    assert [step.malformed for step in tracker.steps] == [True, False]
    assert tracker.steps[0].end == tracker.steps[1].start


def test_text_between_steps_is_malformed_only_for_models_that_write_steps():
    """A plain adapter writes nothing but text; would catch it being counted as one long malformed step."""
    ids = [X, X, REF, A[5], GO, X, END, X, EOS]
    tracker, states = track(ids, annotated=False)
    assert (tracker.num_malformed, len(tracker.steps)) == (0, 1)
    assert phases(states)[:2] == ["between", "between"] and phases(states)[-2:] == ["between", "done"]
    tracker, states = track(ids, annotated=True)
    assert tracker.num_malformed == 2
    assert phases(states)[:2] == ["broken", "broken"] and phases(states)[-2:] == ["broken", "done"]


def test_nothing_comes_after_the_end():
    """Would catch an id after <eos> that opens a step."""
    tracker, states = track([EOS, REF, A[5], GO, X, EOS])
    assert phases(states) == ["done"] * 6
    assert tracker.steps == []


# ---- any ids whatsoever


@settings(max_examples=examples(200, 400), deadline=None)
@given(STREAMS)
def test_any_ids(stream):
    """Never raises; intervals sorted, disjoint, in the context; the token itself, scaffold and own step visible."""
    tracker, states = track(stream)
    for position, state in enumerate(states, start=PROMPT.num_tokens):
        assert state.position == position
        interval_tools.check(state.visible, position + 1)
        assert state.visible[-1][1] == position + 1
        assert state.num_visible == interval_tools.length(state.visible)
        assert len(state.visible) <= MAX_READS + 2
        if state.phase is Phase.BODY:
            seen = set(interval_tools.positions(state.visible))
            assert set(range(PROMPT.scaffold_end)) <= seen
            assert set(range(tracker.steps[state.step].start, position + 1)) <= seen
        else:
            assert state.visible == ((0, position + 1),)
    assert tracker.num_malformed == sum(s.malformed for s in states) == sum(r.malformed for r in tracker.steps)


@settings(max_examples=200, deadline=None)
@given(STREAMS)
def test_any_ids_leave_orderly_records_and_segments(stream):
    """Would catch segments that overlap or reach past what was written, and steps left open behind others."""
    tracker, states = track(stream)
    written = PROMPT.num_tokens + len(states)
    segments = sorted(tracker.segments.values())
    interval_tools.check(segments, written)
    for segment in segments[3:]:
        assert segment[0] >= PROMPT.num_tokens
    for earlier, later in zip(tracker.steps, tracker.steps[1:], strict=False):
        assert earlier.start < earlier.end <= later.start
    assert len(segments) <= 3 + sum(not record.malformed for record in tracker.steps)


def test_state_does_not_grow_with_the_body():
    """O(1) per id: a long body may not leave one object per token behind."""
    tracker, _ = track([REF, A[0], A[5], GO])
    before = deep_size(tracker)
    for _ in range(MAX_BODY_TOKENS - 1):
        tracker.push(X)
    assert deep_size(tracker) - before < 200


def deep_size(value, seen=None):
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    children = []
    if isinstance(value, dict):
        children = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple)):
        children = value
    elif hasattr(value, "__dict__"):
        children = [vars(value)]
    elif hasattr(value, "__slots__"):
        children = [getattr(value, name) for name in value.__slots__]
    return sys.getsizeof(value) + sum(deep_size(child, seen) for child in children)


# ---- rendering


def test_render_refuses_to_teach_malformed_steps():
    """Would catch training data with unknown or taken names."""
    for step in (Step((A[9],), A[5], (X,), (X,)), Step((), A[0], (X,), (X,)), Step((), A[5], (X,), ())):
        with pytest.raises(ValueError, match="malformed"):
            render(Example((1,), (Part((X,), A[0]),), (step,)), MARKERS)
    with pytest.raises(ValueError, match="share the name"):
        render(Example((1,), (Part((X,), A[0]), Part((X,), A[0]))), MARKERS)


def test_markers_must_differ():
    """Would catch a tokenizer that gives two markers one id (the unknown id)."""
    with pytest.raises(ValueError, match="share an id"):
        protocol.Markers(1, 2, 3, 3, 5, 6, (7, 8))


def test_plain_rendering_has_no_marker_and_sees_everything():
    """Would catch a marker in the plain adapter's training text."""
    example = worked_example(0)
    plain = render_plain(example, MARKERS, separator=text(random.Random(0), 1))
    assert not set(plain.ids) & set(MARKERS.ids)
    assert plain.visibility == [((0, p + 1),) for p in range(len(plain.ids))]
    assert plain.loss_mask == [0] * plain.prompt.num_tokens + [1] * (len(plain.ids) - plain.prompt.num_tokens)
