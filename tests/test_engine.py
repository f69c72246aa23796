"""The engine on tiny random models: every lane against the oracles, and the contract of its events."""

import functools
import gc
import itertools
import random
import time
import weakref
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from selfspan_core.engine import sampling
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import HeaderClosed, Prefilled, StepEnded, Token
from selfspan_core.errors import ImplUnavailable, ModelError, PromptError
from selfspan_core.models.model import SpanModel
from selfspan_core.spans.render import Example, Part, Rendered, Step, VisibleRun, render
from selfspan_core.spans.tracker import Phase
from tests.support.asking import generate
from tests.support.engine_tools import (
    LANES,
    TOLERANCE,
    example_run,
    logits,
    run,
    text_prompt,
    tiny_config,
    tiny_hf,
    tokens,
    whole_sequence_logits,
)
from tests.support.span_examples import FIRST_TEXT, MARKERS, PROMPT, STREAMS, text


@pytest.fixture(scope="module")
def engine():
    return Engine(SpanModel(tiny_hf()), MARKERS)


# ---- lanes against oracles


@pytest.mark.parametrize("seed", range(4))
def test_gather_agrees_with_reference(engine, seed):
    """The same tokens forced: would catch any wrong, stale or misplaced key or value on the way."""
    prompt, forced = example_run(seed)
    gathered, expected = run(engine, prompt, "gather", forced), run(engine, prompt, "reference", forced)
    assert (logits(gathered) - logits(expected)).abs().max() < TOLERANCE
    assert [t.visible for t in tokens(gathered)] == [t.visible for t in tokens(expected)]
    dense = run(engine, prompt, "dense", forced)
    assert (logits(dense) - logits(expected)).abs().max() > 0.1, "the mask makes no difference: this test sees nothing"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("seed", range(3))
def test_serving_is_training(engine, seed, attention):
    """One transformers forward under the mask of `Rendered.visibility` gives the incremental engine's logits.

    Would catch positions, masks or off-by-ones that differ between the two, in either lane.
    """
    rendered, forced = example_run(seed)
    start = rendered.prompt.num_tokens
    everything = [((0, p + 1),) for p in range(len(rendered.ids))]
    for lane, visibility in (("gather", rendered.visibility), ("dense", everything)):
        expected = whole_sequence_logits(tiny_hf(), rendered.ids, visibility, attention)[start - 1 : -1]
        served = logits(run(engine, rendered, lane, forced))
        assert (served - expected).abs().max() < TOLERANCE


def test_all_visible_is_dense(engine):
    """Steps that read every segment of a prompt without loose text see all: sparse must equal dense."""
    names = MARKERS.anchors[:4]
    rng = random.Random(0)
    parts = tuple(Part(text(rng, 3), name) for name in names)
    step = Step(names, MARKERS.anchors[4], text(rng, 9), text(rng, 3))
    example = Example((MARKERS.bos, *text(rng, 3)), parts, (step,))
    prompt = render(example, MARKERS)
    forced = prompt.ids[prompt.prompt.num_tokens :]
    sparse, dense = run(engine, prompt, "gather", forced), run(engine, prompt, "dense", forced)
    assert any(token.phase is Phase.BODY for token in tokens(sparse))
    assert all(token.num_visible == token.num_context for token in tokens(sparse))
    assert (logits(sparse) - logits(dense)).abs().max() < TOLERANCE


def test_text_without_steps_is_dense(engine):
    """A plain adapter's text through the sparse lane: would catch a mask where nothing asked for one."""
    rendered, _ = example_run(0)
    forced = [FIRST_TEXT + i % 20 for i in range(40)]
    sparse = run(engine, rendered, "gather", forced, annotated=False)
    dense = run(engine, rendered, "dense", forced, annotated=False)
    assert torch.equal(logits(sparse), logits(dense))
    assert sparse[-1].num_malformed == 0


@settings(max_examples=40, deadline=None)
@given(STREAMS.filter(len))
def test_gather_agrees_with_reference_on_any_ids(stream):
    """Markers in any order: steps cut off, broken in the middle of a body, never closed. Would catch lost state."""
    engine = shared_engine()
    prompt = any_prompt()
    gathered, expected = run(engine, prompt, "gather", stream), run(engine, prompt, "reference", stream)
    assert (logits(gathered) - logits(expected)).abs().max() < TOLERANCE
    assert gathered[-1].attended_tokens == expected[-1].attended_tokens
    assert gathered[-1].num_malformed == expected[-1].num_malformed


@functools.cache
def shared_engine() -> Engine:
    """Hypothesis takes no module fixtures."""
    return Engine(SpanModel(tiny_hf()), MARKERS)


def any_prompt() -> Rendered:
    ids = [MARKERS.bos, *[FIRST_TEXT + i for i in range(PROMPT.num_tokens - 1)]]
    return Rendered(ids, PROMPT, [0] * len(ids), [VisibleRun(0, (), 0)])


def test_two_runs_at_once_do_not_mix(engine):
    """Lanes take turns on one model: would catch state that is shared between calls."""
    prompt, forced = example_run(1)
    alone = {lane: logits(run(engine, prompt, lane, forced)) for lane in ("gather", "dense")}
    lanes = [generate(engine, prompt, forced_tokens=forced, with_logits=True, **LANES[lane]) for lane in alone]
    turns = list(zip(*[(e for e in lane if isinstance(e, Token)) for lane in lanes], strict=True))
    for turn, lane in enumerate(alone):
        assert torch.equal(torch.stack([pair[turn].logits for pair in turns]), alone[lane])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lanes_agree_on_cuda(dtype):
    """The same engine with PyTorch's CUDA kernels: would catch a stray CPU tensor, or another kernel's meaning."""
    prompt, forced = example_run(0)
    exact = logits(run(shared_engine(), prompt, "reference", forced))
    rounded = logits(run(Engine(SpanModel(tiny_hf().to(dtype)), MARKERS), prompt, "reference", forced)).float()
    # What rounding to this dtype costs anywhere; zero for float32, whose sums only differ in their order.
    tolerance = 1e-3 + 2 * (rounded - exact).abs().max()
    on_cuda = Engine(SpanModel(tiny_hf().to("cuda", dtype)), MARKERS)
    for lane in ("gather", "reference"):
        served = logits(run(on_cuda, prompt, lane, forced)).float().cpu()
        assert (served - exact).abs().max() < tolerance
    sampled = [drawn(on_cuda, prompt, temperature=1.0, seed=5) for _ in range(2)]
    assert sampled[0] == sampled[1] and len(sampled[0]) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_serves_the_engine(dtype):
    """`impl="cuda"` against the oracle on whole examples: would catch a step planned for another token's intervals."""
    shape = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    prompt, forced = example_run(0)
    exact = logits(run(Engine(SpanModel(tiny_hf(**shape)), MARKERS), prompt, "reference", forced))
    rounded = logits(run(Engine(SpanModel(tiny_hf(**shape).to(dtype)), MARKERS), prompt, "reference", forced)).float()
    engine = Engine(SpanModel(tiny_hf(**shape).to("cuda", dtype)), MARKERS)
    events = generate(engine, prompt, "sparse", "cuda", forced_tokens=forced, with_logits=True)
    served = logits(list(events)).float().cpu()
    assert (served - exact).abs().max() < 1e-3 + 2 * (rounded - exact).abs().max()


@pytest.mark.parametrize("lane", ["dense", "gather"])
def test_every_forward_pass_leaves_out_kernels_compiled_per_length(monkeypatch, engine, lane):
    """Would catch decoding on CUDA at five times its time: cuDNN's attention makes a plan for every new length."""
    opened, forwards = [], []
    open_context = lambda device: nullcontext(opened.append(device))  # noqa: E731
    monkeypatch.setattr("selfspan_core.engine.engine.length_free_kernels", open_context)
    forward = engine.model.forward_logits
    monkeypatch.setattr(engine.model, "forward_logits", lambda *a: (forwards.append(len(opened)), forward(*a))[1])
    prompt, forced = example_run(0)
    run(engine, prompt, lane, forced)
    assert forwards == list(range(1, len(forced) + 1)) and opened == [engine.model.device] * len(forced)


def test_weights_laid_out_for_one_row_are_the_same_model():
    """Would catch a layout that changes values or unties the output layer."""
    hf = tiny_hf(tie_word_embeddings=True)
    before = {name: weight.clone() for name, weight in hf.state_dict().items()}
    model = SpanModel(hf)
    for name, weight in model.hf.state_dict().items():
        assert torch.equal(weight, before[name])
    assert model.hf.get_input_embeddings().weight is model.hf.get_output_embeddings().weight


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


def drawn(engine, prompt, **options) -> list[int]:
    return [token.id for token in tokens(generate(engine, prompt, max_new_tokens=30, **options))]


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


# ---- model


def test_a_sliding_window_bounds_the_context():
    """Past its window a Mistral does not see everything, so dense would not be dense: would catch wrong answers."""
    config = MistralConfig(**tiny_config(), sliding_window=40)
    assert SpanModel(MistralForCausalLM(config)).max_context == 40
    config = MistralConfig(**tiny_config(), sliding_window=None)
    assert SpanModel(MistralForCausalLM(config)).max_context == 1024


def test_other_architectures_are_refused():
    """Would catch a model whose attention never reaches our hook."""
    with pytest.raises(ModelError, match="gpt2"):
        SpanModel(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=20)))


def test_attention_without_a_reader_or_with_a_mask_is_refused(engine):
    """Would catch a forward that silently attends to the wrong things."""
    hf = engine.model.hf
    with pytest.raises(RuntimeError, match="needs a reader"):
        hf(input_ids=torch.tensor([[1, 2]]))
    with pytest.raises(RuntimeError, match="no attention mask"):
        hf(input_ids=torch.tensor([[1, 2]]), attention_mask=torch.ones(1, 1, 2, 2, dtype=torch.bool), reader=object())
