"""Drafters: what they propose, what they learn, and the settings that choose them."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.engine.acceptance import Acceptance
from selfspan_core.engine.drafters import Draft, LookupSource, Paced, SpanSource, drafter
from selfspan_core.engine.drafts import DraftState, PassCosts
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Finished, Token
from selfspan_core.engine.hints import DraftHints
from selfspan_core.errors import SettingError
from selfspan_core.models.model import SpanModel
from selfspan_core.params import MAX_DRAFTS, Request
from selfspan_core.spans.protocol import PromptLayout
from selfspan_core.spans.tracker import Tracker
from tests.support.asking import asked
from tests.support.engine_tools import example_run, tiny_hf
from tests.support.slow import examples
from tests.support.span_examples import FIRST_TEXT, MARKERS, PROMPT, STREAMS

REF, GO, RES, END, EOS = MARKERS.ref, MARKERS.go, MARKERS.res, MARKERS.end, MARKERS.eos
A = MARKERS.anchors
TEXT = [FIRST_TEXT + number for number in range(30)]
# <bos> scaffold | a0 t0 t1 t2 | + | a1 t3 t4 | + | a2 t5 t6 t7
IDS = [MARKERS.bos, A[0], *TEXT[:3], TEXT[20], A[1], *TEXT[3:5], TEXT[21], A[2], *TEXT[5:8]]
LAYOUT = PromptLayout(len(IDS), 1, {A[0]: (1, 5), A[1]: (6, 9), A[2]: (10, 14)})
BOTH = DraftHints(2, frozenset(TEXT[20:22]), (TEXT[25], RES))


def state_behind(written, layout=LAYOUT, prompt=IDS) -> DraftState:
    tracker = Tracker(MARKERS, layout)
    states = [tracker.push(token) for token in written]
    return DraftState([*prompt, *written], len(prompt), tracker, states[-1])


def first(source, written) -> list[int]:
    """The first candidate's ids."""
    found = next(iter(source.candidates(state_behind(written), MAX_DRAFTS)), ())
    return [draft.token for draft in found]


def test_a_header_and_its_body():
    """Would catch a name that is not the next free one, segments in the wrong order, a marker that is copied, a sign
    between the copies that does not stand between the segments."""
    body = [*TEXT[:3], TEXT[20], *TEXT[3:5], TEXT[25], RES]
    assert first(SpanSource(MARKERS, BOTH), [REF, A[0]]) == [A[1], A[3], GO, *body]
    assert first(SpanSource(MARKERS, BOTH), [REF, A[0], A[1]]) == [A[3], GO, *body]
    assert first(SpanSource(MARKERS, BOTH), [REF, A[0], A[1], A[3]]) == [GO, *body]
    assert first(SpanSource(MARKERS, BOTH), [REF, A[0], A[1], A[3], GO]) == body
    assert first(SpanSource(MARKERS, BOTH), [REF, A[0], A[1], A[3], GO, *body[:4]]) == body[4:]
    one = DraftHints(1, behind=(END,))
    assert first(SpanSource(MARKERS, one), [REF, A[1]])[:5] == [A[3], GO, *TEXT[3:5], END]


def test_a_body_that_departs_is_found_again():
    """Would catch a draft that goes on where the copy was left, though the text has jumped."""
    source = SpanSource(MARKERS, DraftHints(1, behind=(END,)))
    assert first(source, [REF, A[2], A[3], GO, TEXT[5], TEXT[9], TEXT[6]])[:2] == [TEXT[7], END]
    assert first(source, [REF, A[2], A[3], GO, TEXT[5], TEXT[9], TEXT[10]]) == []


def test_results_stand_where_their_operands_stood():
    """Would catch a result that is looked for behind the prompt, so that the next read is never guessed."""
    step = [REF, A[0], A[1], A[3], GO, TEXT[0], RES, TEXT[12], END]
    assert first(SpanSource(MARKERS, BOTH), step)[:5] == [REF, A[3], A[2], A[4], GO]
    # In the same pass as the step's end the header is known, the new segment's text is not in the cache.
    ends = [
        [draft.token for draft in candidate]
        for candidate in SpanSource(MARKERS, BOTH).candidates(state_behind(step[:-1]), 15)
    ]
    assert [END, REF, A[3], A[2], A[4], GO] in ends


def test_lookup_prefers_long_and_new():
    """Would catch an older or shorter match that hides the newest long one, a match of the end with itself."""
    ids = [*TEXT[:3], TEXT[9], *TEXT[:3], TEXT[10], TEXT[11], TEXT[1], TEXT[2], TEXT[12], *TEXT[:3]]
    state = DraftState(ids, 1, Tracker(MARKERS, PROMPT), None)
    by_size = [[draft.token for draft in found] for found in LookupSource().candidates(state, 2)]
    assert by_size == [[TEXT[10], TEXT[11]], [TEXT[12], TEXT[0]], [TEXT[12], TEXT[0]]]
    never = LookupSource((TEXT[11],))
    assert next(iter(never.candidates(state, 5)))[-1].token == TEXT[10]
    assert not list(LookupSource().candidates(DraftState(TEXT[:4], 1, Tracker(MARKERS, PROMPT), None), 5))


class Fixed:
    """A source that says the same all the time."""

    def __init__(self, *candidates) -> None:
        self._candidates = candidates

    def candidates(self, state, most):
        return [[Draft(token, kind) for token, kind in candidate] for candidate in self._candidates]


def test_only_drafts_that_pay_are_proposed():
    """Would catch drafts that go on being verified though they are never right, or good ones that are never tried."""
    costs = PassCosts(0.15, 0.06)
    acceptance = Acceptance()
    paced = Paced(Fixed([(TEXT[0], "copy")] * 9, [(TEXT[1], "poor")] * 9), costs, acceptance=acceptance)
    ids = [TEXT[20]]
    state = lambda: DraftState(ids, 1, Tracker(MARKERS, PROMPT), None)  # noqa: E731
    assert paced.propose(state(), 15) == [TEXT[0]] * 9
    for _ in range(40):
        ids.append(TEXT[15])  # no draft is ever right
        paced.propose(state(), 15)
    assert paced.propose(state(), 15) == []
    assert acceptance.share_right("copy") < 0.2
    limited = Paced(Fixed([(TEXT[0], "poor")] * 9), limit=3)
    assert limited.propose(state(), 15) == [TEXT[0]] * 3


def test_costs_follow_the_machine():
    """Would catch costs that compare passes of different runs, or that one disturbed pass decides."""
    costs = PassCosts(0.15, 0.06)
    before = costs.relative(8)
    costs.record(8, 99.0)  # nothing to compare it with
    assert costs.relative(8) == before and costs.relative(1) == 1
    for _ in range(30):
        costs.record(1, 1.0)
        costs.record(8, 1.1)
    assert costs.relative(8) < before
    costs.begin()
    costs.record(8, 50.0)
    cheap = costs.relative(8)
    costs.record(1, 1.0)
    costs.record(8, 1000.0)
    assert cheap < costs.relative(8) < 1.5 * before


@settings(max_examples=examples(40, 200), deadline=None)
@given(STREAMS, st.integers(1, 3), st.booleans())
def test_any_text_can_be_drafted_from(ids, num_reads, annotated):
    """Would catch a drafter that raises on a malformed text, proposes more than asked for, or an id that is none."""
    hints = DraftHints(num_reads, frozenset(TEXT[:5]), (TEXT[6], RES))
    made = drafter(MARKERS, annotated, hints, "auto", PassCosts())
    tracker, so_far = Tracker(MARKERS, PROMPT, annotated), [FIRST_TEXT] * PROMPT.num_tokens
    for number, token in enumerate(ids):
        state = tracker.push(token)
        so_far.append(token)
        most = number % (MAX_DRAFTS + 1)
        before = (dict(tracker.segments), len(tracker.steps))
        proposed = made.propose(DraftState(so_far, PROMPT.num_tokens, tracker, state), most)
        assert len(proposed) <= most and all(isinstance(one, int) and one >= 0 for one in proposed)
        assert before == (dict(tracker.segments), len(tracker.steps))


@pytest.mark.parametrize("attention", ["dense", "sparse"])
@pytest.mark.parametrize("drafts", ["auto", 1, 7])
def test_an_engines_drafts_change_nothing(attention, drafts):
    """Would catch drafts of the real drafters that change a text, or figures of drafts that do not add up."""
    engine = Engine(SpanModel(tiny_hf()), MARKERS)
    rng = random.Random(7)
    for seed in range(4):
        prompt, forced = example_run(seed)
        for annotated in (True, False):
            settings_ = {"forced_tokens": forced} if seed % 2 else {"max_new_tokens": 60}
            made = engine.drafter(asked(prompt, annotated=annotated), DraftHints(rng.randint(1, 2)), drafts, attention)
            runs = [
                list(engine.generate(asked(prompt, annotated=annotated, drafter=one, **settings_), attention))
                for one in (None, made)
            ]
            tokens = [[event for event in run if isinstance(event, Token)] for run in runs]
            assert [token.id for token in tokens[0]] == [token.id for token in tokens[1]]
            plain, last = tokens[0][-1], tokens[1][-1]
            assert (plain.num_passes, plain.num_drafted) == (len(tokens[0]) - 1, 0)
            assert last.num_passes + last.num_accepted == len(tokens[1]) - 1
            assert last.num_accepted == sum(token.is_draft for token in tokens[1]) <= last.num_drafted
            assert isinstance(runs[1][-1], Finished)


@pytest.mark.parametrize(("given_value", "kept"), [("auto", "auto"), ("off", "off"), ("7", 7), (15, 15), (3.0, 3)])
def test_settings(given_value, kept):
    """Would catch a setting that the command line passes as text and nobody understands."""
    assert Request("arithmetic", "1+2", drafts=given_value).drafts == kept


@pytest.mark.parametrize("bad", ["", "no", "0", "16", -1, True, 2.5, 3.5, 15.5, None, "9" * 99, float("nan"), "٣"])
def test_bad_settings(bad):
    """Would catch a number that no step verifies, or a traceback instead of a reason."""
    with pytest.raises(SettingError, match=r"^drafts is auto, off, or a whole number from 1 to 15, not "):
        Request("arithmetic", "1+2", drafts=bad)


def test_off_is_off():
    """Would catch a lane that drafts though it was told not to."""
    engine = Engine(SpanModel(tiny_hf()), MARKERS)
    assert engine.drafter(asked(example_run(1)[0]), DraftHints(), "off") is None


def test_what_a_run_learned_is_remembered_in_the_next():
    """Would catch useless drafts that every run verifies anew, and a kind that is never tried again because it failed
    in one text."""
    costs, acceptance = PassCosts(0.42, 0.15), Acceptance()

    def wrong_passes() -> int:
        paced, ids = Paced(Fixed([(TEXT[0], "lookup 2")] * 9), costs, acceptance=acceptance), [TEXT[20]]
        num = 0
        for _ in range(40):
            num += bool(paced.propose(DraftState(ids, 1, Tracker(MARKERS, PROMPT), None), 15))
            ids.append(TEXT[15])
        return num

    first, *later = [wrong_passes() for _ in range(30)]
    assert first > max(later)
    assert sum(later) < 30
    for _ in range(60):  # runs in which nothing of the kind came up
        acceptance.begin()
    assert wrong_passes() == first
