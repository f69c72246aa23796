"""The contract of the engine's events, what is drawn, and where a run ends."""

import gc
import itertools
import time
import weakref

import pytest
import torch

from selfspan_core.engine import sampling
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import HeaderClosed, Prefilled, StepEnded
from selfspan_core.errors import ImplUnavailable, PromptError
from selfspan_core.models.model import SpanModel
from selfspan_core.spans.tracker import Phase
from tests.support.asking import generate
from tests.support.engine_tools import LANES, drawn, example_run, logits, run, text_prompt, tiny_engine, tiny_hf, tokens
from tests.support.span_examples import FIRST_TEXT, MARKERS


@pytest.fixture
def engine() -> Engine:
    return tiny_engine()


# ---- events


def test_the_order_and_sums_of_events(engine):
    """Would catch figures that do not add up, and news that come before their token or not at all."""
    prompt, forced = example_run(2)
    events = run(engine, prompt, "gather", forced)
    assert isinstance(events[0], Prefilled) and events[0].num_tokens == prompt.prompt.num_tokens
    finished = events[-1]
    written = tokens(events)
    assert [token.id for token in written] == forced
    assert [token.position for token in written] == list(range(prompt.prompt.num_tokens, len(prompt.ids)))
    assert all(token.num_context == token.position + 1 for token in written)
    assert [token.visible for token in written] == prompt.visibility[prompt.prompt.num_tokens :]
    assert all(token.num_visible == sum(e - s for s, e in token.visible) for token in written)
    assert (finished.reason, finished.num_tokens, finished.num_malformed) == ("eos", len(forced), 0)
    # The last token is never a query.
    assert finished.attended_tokens == sum(token.num_visible for token in written[:-1])
    assert finished.dense_tokens == sum(token.num_context for token in written[:-1])
    total = events[0].seconds + sum(token.step_ms for token in written) / 1000
    assert finished.seconds == pytest.approx(total, rel=1e-6)
    for before, event in itertools.pairwise(events):
        if isinstance(event, HeaderClosed):
            assert before.id == MARKERS.go
        if isinstance(event, StepEnded):
            assert before.id == MARKERS.end
            assert event.record.end == before.position + 1
    assert [e.step for e in events if isinstance(e, HeaderClosed)] == list(range(8))
    assert [e.record for e in events if isinstance(e, StepEnded)] == list(finished.steps)


def test_the_dense_lane_reports_steps_and_reads_everything(engine):
    """Would catch a dense lane that claims to have read less, or loses the steps."""
    prompt, forced = example_run(2)
    events = run(engine, prompt, "dense", forced)
    assert all(token.visible == ((0, token.position + 1),) for token in tokens(events))
    assert events[-1].attended_tokens == events[-1].dense_tokens
    assert len(events[-1].steps) == sum(isinstance(e, StepEnded) for e in events) == 8
    assert any(token.phase is Phase.BODY for token in tokens(events))


@pytest.mark.parametrize("lane", ["gather", "dense"])
def test_malformed_output_is_flagged_and_never_crashes(engine, lane):
    """Would catch a step broken by another one whose end nobody hears of."""
    prompt, _ = example_run(0)
    name = MARKERS.anchors[20]
    forced = [MARKERS.ref, MARKERS.ref, MARKERS.ref, name, MARKERS.go, FIRST_TEXT, name, FIRST_TEXT, MARKERS.eos]
    events = run(engine, prompt, lane, forced)
    assert events[-1].num_malformed == 2 == sum(token.malformed for token in tokens(events))
    ended = [event for event in events if isinstance(event, StepEnded)]
    assert [event.step for event in ended] == [0, 1]
    assert all(event.record.malformed for event in ended)


def test_time_between_events_is_in_nobodys_clock(engine):
    """Would catch drawing or a waiting browser being charged to a lane."""
    prompt, forced = example_run(0)
    events = []
    for event in generate(engine, prompt, forced_tokens=forced[:10]):
        events.append(event)
        time.sleep(0.05)
    assert events[-1].seconds < 0.05 * len(events)


def test_consumers_are_not_in_inference_mode(engine):
    """Would catch inference mode leaking out of a suspended generator into the consumer's own torch code."""
    prompt, forced = example_run(0)
    for _ in generate(engine, prompt, forced_tokens=forced[:5]):
        assert not torch.is_inference_mode_enabled()


def test_closing_frees_everything(engine, monkeypatch):
    """A stopped run must give its cache back at once: would catch a reference that keeps it."""
    caches = []
    new_cache = SpanModel.new_cache

    def watched(self, capacity):
        cache = new_cache(self, capacity)
        caches.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(SpanModel, "new_cache", watched)
    prompt, forced = example_run(0)
    gc.disable()
    try:
        running = generate(engine, prompt, forced_tokens=forced, **LANES["gather"])
        for _ in range(20):
            next(running)
        assert caches[0]() is not None
        running.close()
        assert caches[0]() is None
        list(generate(engine, prompt, forced_tokens=forced))
        assert caches[1]() is None
    finally:
        gc.enable()


# ---- drawing


def test_greedy_takes_the_best_token(engine):
    """Would catch a draw from the wrong position's logits."""
    prompt, _ = example_run(3)
    events = list(generate(engine, prompt, attention="dense", max_new_tokens=12, with_logits=True))
    assert [token.id for token in tokens(events)] == [int(token.logits.argmax()) for token in tokens(events)]
    replay = run(engine, prompt, "dense", [token.id for token in tokens(events)])
    assert torch.equal(logits(events), logits(replay))


def test_sampling_is_seeded_and_private(engine):
    """Would catch runs that cannot be repeated, or that disturb or follow torch's global generator."""
    prompt, _ = example_run(3)
    torch.manual_seed(1)
    first = drawn(engine, prompt, temperature=1.0, seed=5)
    after = torch.rand(1)
    torch.manual_seed(2)
    assert drawn(engine, prompt, temperature=1.0, seed=5) == first
    assert drawn(engine, prompt, temperature=1.0, seed=6) != first
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert drawn(engine, prompt, temperature=1e-6, seed=5) == drawn(engine, prompt)


@pytest.mark.parametrize("lane", LANES.values(), ids=LANES)
def test_top_p_reaches_the_draw(engine, lane):
    """Would catch a lane that forgets the share, runs that cannot be repeated, a share of 1 that changes draws."""
    prompt, _ = example_run(3)
    lane = lane | {"temperature": 2.0}
    assert drawn(engine, prompt, **lane, seed=5, top_p=1e-9) == drawn(engine, prompt, **lane | {"temperature": 0.0})
    some = drawn(engine, prompt, **lane, seed=5, top_p=0.6)
    assert some == drawn(engine, prompt, **lane, seed=5, top_p=0.6) != drawn(engine, prompt, **lane, seed=6, top_p=0.6)
    every = drawn(engine, prompt, **lane, seed=5)
    assert every == drawn(engine, prompt, **lane, seed=5, top_p=1.0) != some


def test_what_is_drawn_is_in_the_nucleus(engine):
    """Would catch a share that is taken of other logits than those that the token is drawn from."""
    prompt, _ = example_run(3)
    options = {"temperature": 1.5, "top_p": 0.7, "max_new_tokens": 60, "with_logits": True}
    written = tokens(generate(engine, prompt, **options))
    assert all(sampling.probabilities(token.logits, 1.5, 0.7)[token.id] > 0 for token in written)
    outside = [token for token in tokens(generate(engine, prompt, **options | {"top_p": 1.0}))]
    assert not all(sampling.probabilities(token.logits, 1.5, 0.7)[token.id] > 0 for token in outside)


# ---- limits and errors


@pytest.mark.parametrize("lane", ["gather", "dense"])
def test_the_context_ends_the_run(lane):
    """Would catch a write past the cache, or a position that the model has never seen."""
    small = Engine(SpanModel(tiny_hf(max_position_embeddings=32)), MARKERS)
    forced = [FIRST_TEXT] * 100
    events = run(small, text_prompt(30), lane, forced, annotated=False)
    assert (events[-1].reason, [token.position for token in tokens(events)]) == ("length", [30, 31])
    events = run(small, text_prompt(31), lane, forced, annotated=False)
    assert (events[-1].reason, events[-1].num_tokens, events[-1].attended_tokens) == ("length", 1, 0)
    with pytest.raises(PromptError, match="32 tokens, and the model's context holds 32"):
        generate(small, text_prompt(32))
    with pytest.raises(PromptError, match="empty"):
        generate(small, text_prompt(0))


def test_max_new_tokens_ends_the_run(engine):
    """Would catch an off-by-one in the limit, and a step left open that is taken for an error."""
    prompt, forced = example_run(0)
    events = run(engine, prompt, "gather", forced, max_new_tokens=7)
    assert (events[-1].reason, events[-1].num_tokens, events[-1].num_malformed) == ("length", 7, 0)
    assert run(engine, prompt, "gather", forced[:7])[-1].reason == "length"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "both"}, "'dense' or 'sparse'"),
        ({"attention": "sparse", "impl": "magic"}, "magic"),
        ({"max_new_tokens": 0}, "1 or more"),
        ({"temperature": -1.0}, "from 0 to 5, not -1.0"),
        ({"temperature": float("nan")}, "temperature is a number"),
        ({"top_p": 0.0}, "top_p is a number above 0 and at most 1, not 0"),
        ({"top_p": 1.5}, "top_p is a number above 0 and at most 1, not 1.5"),
        ({"forced_tokens": []}, "empty"),
    ],
)
def test_senseless_arguments_are_refused_at_the_call(engine, options, message):
    """Would catch an error that shows up only when the first event is asked for."""
    with pytest.raises(ValueError, match=message):
        generate(engine, example_run(0)[0], **options)


def test_unavailable_implementations_are_refused_at_the_call(engine):
    """Would catch a silent fallback."""
    with pytest.raises(ImplUnavailable, match="CUDA device"):
        generate(engine, example_run(0)[0], attention="sparse", impl="cuda")
