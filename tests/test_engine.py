"""The engine on tiny random models: every lane against the oracles, and the contract of its events."""

import random
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from selfspan_core.engine.decoder import Decoder
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Token
from selfspan_core.errors import ModelError
from selfspan_core.models.model import SpanModel
from selfspan_core.spans.render import Example, Part, Rendered, Step, VisibleRun, render
from selfspan_core.spans.tracker import Phase
from tests.support.asking import generate
from tests.support.engine_tools import (
    LANES,
    TOLERANCE,
    drawn,
    example_run,
    logits,
    run,
    tiny_config,
    tiny_engine,
    tiny_hf,
    tokens,
    whole_sequence_logits,
)
from tests.support.span_examples import FIRST_TEXT, MARKERS, PROMPT, STREAMS, text


@pytest.fixture
def engine() -> Engine:
    return tiny_engine()


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
    engine = tiny_engine()
    prompt = any_prompt()
    gathered, expected = run(engine, prompt, "gather", stream), run(engine, prompt, "reference", stream)
    assert (logits(gathered) - logits(expected)).abs().max() < TOLERANCE
    assert gathered[-1].attended_tokens == expected[-1].attended_tokens
    assert gathered[-1].num_malformed == expected[-1].num_malformed


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
    exact = logits(run(tiny_engine(), prompt, "reference", forced))
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
    monkeypatch.setattr("selfspan_core.engine.host_step.length_free_kernels", open_context)
    step = Decoder.__call__
    monkeypatch.setattr(Decoder, "__call__", lambda *a, **b: (forwards.append(len(opened)), step(*a, **b))[1])
    prompt, forced = example_run(0)
    run(engine, prompt, lane, forced)
    assert forwards == list(range(1, len(forced) + 1)) and opened == [engine.model.device] * len(forced)


def test_weights_laid_out_for_one_row_are_the_same_model():
    """Would catch a layout that changes values or unties the output layer."""
    hf = tiny_hf(tie_word_embeddings=True)
    before = {name: weight.clone() for name, weight in hf.state_dict().items()}
    model = SpanModel(hf)
    assert model.weights.head.weight.t().is_contiguous() or not torch.backends.mkl.is_available()
    for name, weight in model.hf.state_dict().items():
        assert torch.equal(weight, before[name])
    assert model.hf.get_input_embeddings().weight is model.hf.get_output_embeddings().weight


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
