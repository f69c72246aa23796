"""Every reader against the oracle, and the oracle against arithmetic by hand."""

import math
import random
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.attention import backends
from selfspan_core.attention.fused import length_free_kernels
from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.attention.readers import CudaReader, DenseReader, GatherReader, ReferenceReader, make_reader
from selfspan_core.attention.reference import masked_attention, visibility_mask
from selfspan_core.errors import ImplUnavailable
from selfspan_core.spans import intervals
from selfspan_core.spans.tracker import Phase, Tracker
from tests.support import interval_tools
from tests.support.slow import examples
from tests.support.span_examples import MARKERS, PROMPT, STREAMS, VOCAB

HEAD_DIM = 8
SCALE = HEAD_DIM**-0.5


def random_qkv(seed, num_heads, num_kv_heads, capacity):
    generator = torch.Generator().manual_seed(seed)
    make = lambda heads, length: torch.randn(1, heads, length, HEAD_DIM, generator=generator)  # noqa: E731
    return make(num_heads, 1), make(num_kv_heads, capacity), make(num_kv_heads, capacity)


def by_hand(query, keys, values, positions):
    """Softmax attention in Python floats, one head at a time."""
    group = query.shape[1] // keys.shape[1]
    out = torch.empty(query.shape)
    for head in range(query.shape[1]):
        q = query[0, head, 0].tolist()
        weights = [
            math.exp(SCALE * sum(a * b for a, b in zip(q, keys[0, head // group, p].tolist(), strict=True)))
            for p in positions
        ]
        rows = [values[0, head // group, p].tolist() for p in positions]
        total = sum(weights)
        mixed = [sum(w * row[d] for w, row in zip(weights, rows, strict=True)) / total for d in range(HEAD_DIM)]
        out[0, head, 0] = torch.tensor(mixed)
    return out


class BodyState(NamedTuple):
    """A tracker's word on one body token, with intervals of the test's choice."""

    visible: tuple[tuple[int, int], ...]
    phase: Phase = Phase.BODY

    @property
    def position(self) -> int:
        return self.visible[-1][1] - 1

    own_start = position
    sees_everything = False

    @property
    def context(self) -> tuple[tuple[int, int], ...]:
        start, end = self.visible[-1]
        return (*self.visible[:-1], (start, end - 1)) if end - 1 > start else self.visible[:-1]

    @property
    def num_visible(self) -> int:
        return interval_tools.length(self.visible)


def read_once(reader_of, query, keys, values, visible) -> torch.Tensor:
    """One body token's attention by a reader: the query stands at the end of the last interval, whose key is new."""
    num_kv_heads, capacity, head_dim = keys.shape[1:]
    cache = KVCache(1, num_kv_heads, head_dim, capacity, keys.dtype, keys.device)
    cache.write(0, 0, keys, values)
    state = BodyState(tuple(visible))
    at = state.position
    new = keys[:, :, at : at + 1].clone(), values[:, :, at : at + 1].clone()
    # What stands in the new token's place is garbage until the reader has written it.
    cache.keys[0][:, :, at] = cache.values[0][:, :, at] = float("nan")
    reader = reader_of(cache)
    reader.plan(at, [state])
    return reader.attend(0, query, *new, head_dim**-0.5)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (4, 4), (4, 2), (6, 1)])
def test_the_oracle_by_hand(num_heads, num_kv_heads):
    """Would catch a wrong oracle, which every other test here trusts: head grouping, scale, mask."""
    query, keys, values = random_qkv(0, num_heads, num_kv_heads, 20)
    visible = [(0, 3), (5, 6), (11, 20)]
    expected = by_hand(query, keys, values, interval_tools.positions(visible))
    out = masked_attention(query, keys, values, visibility_mask([visible], 20), SCALE)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read_once(ReferenceReader, query, keys, values, visible), out)


@settings(max_examples=examples(60, 150), deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(1, 30)), min_size=1, max_size=6),
    st.sampled_from([(1, 1), (6, 6), (4, 2), (8, 1)]),
    st.integers(0, 1000),
)
def test_gather_agrees_with_the_oracle(pieces, heads, seed):
    """Any intervals, any grouping: would catch a lost, doubled or misplaced position."""
    visible = intervals.merge((start, start + length) for start, length in pieces)
    query, keys, values = random_qkv(seed, *heads, 100)
    expected = read_once(ReferenceReader, query, keys, values, visible)
    out = read_once(GatherReader, query, keys, values, visible)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 97, 511, 512, 513, 1025])
def test_odd_lengths(length):
    """Would catch a fused kernel that is wrong at the edges of its blocks."""
    query, keys, values = random_qkv(1, 4, 2, length + 7)
    visible = [(3, 3 + length)]
    expected = read_once(ReferenceReader, query, keys, values, visible)
    out = read_once(GatherReader, query, keys, values, visible)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reader_of", [ReferenceReader, GatherReader, DenseReader])
def test_everything_visible_is_dense(reader_of):
    """Would catch a visible set of everything that means something else than dense attention."""
    query, keys, values = random_qkv(2, 6, 6, 50)
    expected = F.scaled_dot_product_attention(query, keys, values, scale=SCALE)
    out = read_once(reader_of, query, keys, values, [(0, 50)])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_gather_does_not_touch_what_is_not_visible():
    """Invisible positions hold NaN, which would spread to the output if they were read at all."""
    query, keys, values = random_qkv(3, 4, 2, 40)
    visible = [(2, 5), (9, 30)]
    expected = read_once(GatherReader, query, keys, values, visible)
    hidden = ~visibility_mask([visible], 40)[0]
    keys[:, :, hidden] = values[:, :, hidden] = float("nan")
    assert torch.equal(read_once(GatherReader, query, keys, values, visible), expected)


def test_asked_for_and_unavailable_says_why():
    """Would catch a silent fallback to another implementation."""
    cache = KVCache(1, 1, HEAD_DIM, 4, torch.float32, torch.device("cpu"))
    for impl in ("cuda", "captured"):
        with pytest.raises(ImplUnavailable, match=f"impl '{impl}': .*CUDA device"):
            backends.require_impl(impl, "cpu")
    with pytest.raises(ImplUnavailable, match="CUDA device"):
        make_reader("sparse", "cuda", cache, "cpu")
    assert all(backends.why_unavailable(impl, "cpu") is None for impl in ("reference", "gather"))
    if not torch.cuda.is_available():
        assert "torch finds none" in backends.why_unavailable("cuda", "cuda")


@pytest.mark.parametrize("impl", ["", "Gather", "dense", "triton"])
def test_unknown_implementations_are_named(impl):
    """Would catch a mistyped option that is swallowed."""
    with pytest.raises(ValueError, match="reference, gather, cuda, captured"):
        backends.why_unavailable(impl, "cpu")
    cache = KVCache(1, 1, HEAD_DIM, 4, torch.float32, torch.device("cpu"))
    for name in (impl, "captured"):  # a captured step has no reader
        with pytest.raises(ValueError, match="reference, gather, cuda"):
            make_reader("sparse", name, cache, "cpu")


def test_seeing_nothing_is_an_error():
    """Would catch NaN out of a softmax over nothing."""
    query, keys, values = random_qkv(5, 1, 1, 4)
    with pytest.raises(ValueError, match="sees nothing"):
        masked_attention(query, keys, values, torch.zeros(1, 4, dtype=torch.bool), SCALE)


def test_low_precision_keeps_its_dtype_and_is_close():
    """Would catch an implementation that returns float32 to a bfloat16 model, or loses more than rounding."""
    query, keys, values = random_qkv(6, 4, 2, 60)
    visible = [(0, 7), (20, 60)]
    exact = read_once(GatherReader, query.double(), keys.double(), values.double(), visible)
    low = [tensor.bfloat16() for tensor in (query, keys, values)]
    for reader_of in (ReferenceReader, GatherReader):
        out = read_once(reader_of, *low, visible)
        assert out.dtype is torch.bfloat16
        torch.testing.assert_close(out.double(), exact, atol=2e-2, rtol=2e-2)


# ---- cache


def test_kernels_compiled_per_length_are_left_out_on_cuda_only():
    """Would catch cuDNN's attention in decoding: 40 ms per token for its plans, where the rest takes 8."""
    cuda = torch.backends.cuda
    before = cuda.cudnn_sdp_enabled(), cuda.flash_sdp_enabled()
    with length_free_kernels(torch.device("cuda")):
        assert not cuda.cudnn_sdp_enabled() and cuda.flash_sdp_enabled() and cuda.math_sdp_enabled()
    with length_free_kernels(torch.device("cpu")):
        assert (cuda.cudnn_sdp_enabled(), cuda.flash_sdp_enabled()) == before
    assert (cuda.cudnn_sdp_enabled(), cuda.flash_sdp_enabled()) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_agrees_with_the_oracle(dtype):
    """The op with `impl="cuda"`: would catch heads, strides or the scale handed over wrongly."""
    make = lambda heads, length: torch.randn(1, heads, length, 64, device="cuda").to(dtype)  # noqa: E731
    query, keys, values = make(8, 1), make(2, 500), make(2, 500)
    visible = [(0, 3), (77, 78), (100, 431)]
    expected = read_once(ReferenceReader, query, keys, values, visible)
    out = read_once(CudaReader, query, keys, values, visible)
    assert out.dtype == dtype and (out.float() - expected.float()).abs().max() < 0.02
    with pytest.raises(ImplUnavailable, match="float32"):
        read_once(CudaReader, query.float(), keys.float(), values.float(), visible)


def test_cache_moves_positions_between_capacities():
    """Would catch a gather that mixes up layers, keys and values, or positions."""
    source, target = (KVCache(3, 2, 4, capacity, torch.float32, torch.device("cpu")) for capacity in (20, 9))
    for layer in range(3):
        marks = torch.arange(20.0)[None, None, :, None].expand(1, 2, 20, 4)
        source.write(layer, 0, marks + 100 * layer, -marks - 100 * layer)
    assert target.copy_from(source, [(2, 5), (17, 19)], start=3) == 8
    for layer in range(3):
        expected = torch.tensor([2.0, 3, 4, 17, 18]) + 100 * layer
        assert torch.equal(target.keys[layer][0, 1, 3:8, 2], expected)
        assert torch.equal(target.values[layer][0, 0, 3:8, 0], -expected)
    assert source.bytes_per_token == 2 * 3 * 2 * 4 * 4


# ---- readers: the same, with a memory

NUM_LAYERS = 2


def drive(reader, tracker, ids, num_heads, num_kv_heads, seed):
    """A decode without a model: random queries, keys and values; returns the attention outputs."""
    generator = torch.Generator().manual_seed(seed)
    make = lambda heads, length: torch.randn(1, heads, length, HEAD_DIM, generator=generator)  # noqa: E731

    def layers(length):
        return [
            reader.attend(layer, make(num_heads, length), make(num_kv_heads, length), make(num_kv_heads, length), SCALE)
            for layer in range(NUM_LAYERS)
        ]

    reader.plan(0, None)
    outputs = [layers(PROMPT.num_tokens)]
    for token in ids:
        state = tracker.push(token)
        reader.plan(state.position, [state])
        outputs.append(layers(1))
    return outputs


def new_cache(ids, num_kv_heads):
    """A cache full of NaN: whatever is read before it is written shows."""
    cache = KVCache(
        NUM_LAYERS, num_kv_heads, HEAD_DIM, PROMPT.num_tokens + len(ids), torch.float32, torch.device("cpu")
    )
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(float("nan"))
    return cache


@settings(max_examples=examples(60, 120), deadline=None)
@given(STREAMS, st.sampled_from([(2, 2), (4, 2)]), st.booleans())
def test_gather_reader_agrees_with_the_oracle_on_any_ids(ids, heads, annotated):
    """Whole decodes over any ids: steps that end, break mid-body, are cut off or never close.

    Would catch keys and values that are lost between workspace and cache when visibility changes.
    """
    outputs = []
    for reader_of in (GatherReader, ReferenceReader):
        reader = reader_of(new_cache(ids, heads[1]))
        outputs.append(drive(reader, Tracker(MARKERS, PROMPT, annotated), ids, *heads, seed=0))
    for gathered, expected in zip(*outputs, strict=True):
        for layer in range(NUM_LAYERS):
            torch.testing.assert_close(gathered[layer], expected[layer], atol=1e-5, rtol=1e-4)


class Passes:
    """A decode without a model, in passes of several tokens: some that are kept, and drafts that are not."""

    def __init__(self, reader, annotated, heads) -> None:
        num_heads, num_kv_heads = heads
        self._reader, self._tracker = reader, Tracker(MARKERS, PROMPT, annotated)
        self._heads = (num_heads, num_kv_heads, num_kv_heads)
        self._reader.plan(0, None)
        self._attend(self._numbers(0, PROMPT.num_tokens, 0))

    def _numbers(self, start, num, seed):
        """Queries, keys and values of all layers, by position."""
        generators = [torch.Generator().manual_seed(1000 * seed + position) for position in range(start, start + num)]
        parts = [[torch.randn(1, h, 1, HEAD_DIM, generator=g) for h in self._heads * NUM_LAYERS] for g in generators]
        return [torch.cat(tokens, 2) for tokens in zip(*parts, strict=True)]

    def _attend(self, numbers):
        return [self._reader.attend(layer, *numbers[3 * layer : 3 * layer + 3], SCALE) for layer in range(NUM_LAYERS)]

    def together(self, kept, drafts):
        """The outputs of as many tokens of `kept` as can go through one pass, drafts behind them; and how many."""
        states = self._tracker.preview([*kept, *drafts])
        start = states[0].position
        fits = [not state.context or state.context[-1][1] <= start for state in states]
        states = states[: [*fits, False].index(False)]
        num_kept = min(len(kept), len(states))
        numbers = self._numbers(start, num_kept, 0)
        if len(states) > num_kept:  # other numbers than those that are written there later
            wrong = self._numbers(start + num_kept, len(states) - num_kept, 1)
            numbers = [torch.cat(pair, 2) for pair in zip(numbers, wrong, strict=True)]
        self._reader.plan(start, states)
        out = self._attend(numbers)
        for token in kept[:num_kept]:
            self._tracker.push(token)
        return [layer[:, :, :num_kept] for layer in out], num_kept


@settings(max_examples=examples(60, 200), deadline=None)
@given(STREAMS, STREAMS, st.sampled_from([(2, 2), (4, 2)]), st.booleans(), st.randoms(use_true_random=False))
def test_passes_of_several_tokens_agree_with_the_oracle_token_by_token(ids, others, heads, annotated, rng):
    """Any ids, cut into passes anywhere, with drafts behind them that are forgotten.

    Would catch a draft that leaves something behind, a token that sees a later one, a body that reads another's
    workspace, a header that reads a workspace.
    """
    oracle = Passes(ReferenceReader(new_cache(ids, heads[1])), annotated, heads)
    expected = [oracle.together([token], [])[0] for token in ids]
    for reader_of in (GatherReader, ReferenceReader):
        passes = Passes(reader_of(new_cache([*ids, *[0] * 8], heads[1])), annotated, heads)
        done = 0
        while done < len(ids):
            kept = ids[done : done + rng.randint(1, 6)]
            drafts = [rng.choice(others) for _ in range(rng.randint(0, 6))] if others else []
            outputs, num = passes.together(kept, drafts)
            for layer in range(NUM_LAYERS):
                want = torch.cat([one[layer] for one in expected[done : done + num]], 2)
                torch.testing.assert_close(outputs[layer], want, atol=1e-5, rtol=1e-4)
            done += num


def test_a_body_reads_only_its_workspace():
    """Everything in the cache becomes NaN once the first body token has gathered: later body tokens must not care."""
    name, text = MARKERS.anchors[5], VOCAB - 1
    ids = [MARKERS.ref, MARKERS.anchors[0], name, MARKERS.go, *[text] * 6]
    cache = new_cache(ids, 2)
    reader = GatherReader(cache)
    tracker = Tracker(MARKERS, PROMPT)
    plain_plan = reader.plan

    def plan_then_poison(start, states):
        plain_plan(start, states)
        if states is not None and states[0].phase is Phase.BODY:
            for tensor in (*cache.keys, *cache.values):
                tensor.fill_(float("nan"))

    reader.plan = plan_then_poison
    outputs = drive(reader, tracker, ids, 4, 2, seed=1)
    expected = drive(ReferenceReader(new_cache(ids, 2)), Tracker(MARKERS, PROMPT), ids, 4, 2, seed=1)
    for got, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_workspace_grows_with_what_steps_read():
    """A step that reads more than the workspace holds: would catch one that is too small."""
    rng = random.Random(0)
    ids = []
    known = list(MARKERS.anchors[:1])
    for index in range(8):
        name = MARKERS.anchors[4 + index]
        ids += [
            MARKERS.ref,
            *known[-8:],
            name,
            MARKERS.go,
            *[rng.randrange(40, VOCAB) for _ in range(200)],
            MARKERS.end,
        ]
        known.append(name)
    tracker = Tracker(MARKERS, PROMPT)
    reader = GatherReader(new_cache(ids, 2))
    got = drive(reader, tracker, ids, 2, 2, seed=2)
    assert tracker.num_malformed == 0
    want = drive(ReferenceReader(new_cache(ids, 2)), Tracker(MARKERS, PROMPT), ids, 2, 2, seed=2)
    torch.testing.assert_close(torch.cat([o[1] for o in got[1:]]), torch.cat([o[1] for o in want[1:]]))


def test_dense_reader_sees_everything_whatever_the_tracker_says():
    """Would catch a dense lane that is not dense."""
    ids = [MARKERS.ref, MARKERS.anchors[5], MARKERS.go, VOCAB - 1, VOCAB - 2, MARKERS.end]
    got = drive(DenseReader(new_cache(ids, 2)), Tracker(MARKERS, PROMPT), ids, 4, 2, seed=3)
    everything = Tracker(MARKERS, PROMPT, annotated=False)
    want = drive(ReferenceReader(new_cache(ids, 2)), everything, [VOCAB - 1] * len(ids), 4, 2, seed=3)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
