"""The plugin's backend for CUDA: which query goes through which kernel, over which tables. Without vLLM or a GPU."""

import itertools
import random
from types import SimpleNamespace

import pytest
import torch

from selfspan_core.errors import ImplUnavailable
from selfspan_core.serve.vllm_plugin.followed import Followed, SpanRows
from selfspan_core.spans.render import render
from tests.support import vllm_stub
from tests.support.kernel_on_cpu import COMPILER
from tests.support.span_examples import MARKERS, VOCAB, worked_example
from tests.support.vllm_stub import CGSupport, Common, Metadata, attended

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++ to compile the tracker for the CPU")
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, NUM_PAGES, MAX_PAGES, SCALE = 4, 2, 64, 16, 64, 8, 0.2


def made(module, tokens_first, is_async=False):
    """A builder, its layer, and rows that nobody follows yet."""
    shape = (NUM_PAGES, PAGE_SIZE, NUM_KV_HEADS) if tokens_first else (NUM_PAGES, NUM_KV_HEADS, PAGE_SIZE)
    cache = torch.randn(*shape, 2 * HEAD_DIM)
    impl = module.SelfSelectedCUDAImpl(NUM_HEADS, HEAD_DIM, SCALE, NUM_KV_HEADS)
    layer = SimpleNamespace(impl=impl, kv_cache=cache.transpose(1, 2) if tokens_first else cache)
    layers = SimpleNamespace(static_forward_context={"layer": layer})
    impl.span_rows = SpanRows()
    return module.SelfSelectedCUDABuilder(None, ["layer"], config(layers, is_async), torch.device("cpu")), layer


def config(layers, is_async=False):
    """As much of vLLM's settings as the builder looks at."""
    return SimpleNamespace(
        compilation_config=layers,
        scheduler_config=SimpleNamespace(async_scheduling=is_async),
        model_config=SimpleNamespace(get_vocab_size=lambda: VOCAB),
    )


def step(rng, rows, is_decode, num_padding, is_async=False):
    """A step of random requests: metadata, and what every query sees, query by query.

    With asynchronous scheduling the last id of a request that goes on is known to the device alone.
    """
    lengths, starts, expected, next_ids = [], [0], [], []
    for row in range(rng.randint(1, 6)):
        rendered = render(worked_example(rng.randrange(1000), num_segments=3, num_steps=3), MARKERS)
        num_prompt = rendered.prompt.num_tokens
        ids = rendered.ids[num_prompt : num_prompt + rng.randint(1, len(rendered.ids) - num_prompt)]
        length = num_prompt + len(ids)
        num_queries = 1 if is_decode else rng.choice([1, 2, rng.randint(2, length)])
        next_ids += rendered.ids[length - num_queries : length]
        if is_sparse := rng.random() < 0.7:
            is_late = is_async and (num_queries == 1 or rng.random() < 0.5)
            rows.followed[row] = Followed(MARKERS, rendered.prompt, [*ids[:-1], -1] if is_late else ids)
            rows.followed[row].catch_up()
        lengths.append(length)
        starts.append(starts[-1] + num_queries)
        visibility = rendered.visibility
        seen = [visibility[at] if is_sparse else ((0, at + 1),) for at in range(length - num_queries, length)]
        expected += [(row, one) for one in seen]
    if is_async:
        rows.next_ids = torch.tensor([*next_ids, *[VOCAB + 5] * 9], dtype=torch.int32)
    longest = max(end - start for start, end in itertools.pairwise(starts))
    for _ in range(num_padding):
        starts.append(starts[-1] + 1)
        lengths.append(0)
    table = torch.stack([torch.randperm(NUM_PAGES)[:MAX_PAGES] for _ in lengths]).int()
    counts = torch.tensor(lengths)
    return Common(torch.tensor(starts), counts, len(lengths), longest, table, counts), expected


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("is_decode", [True, False], ids=["decode", "with prompts"])
@pytest.mark.parametrize("is_async", [False, pytest.param(True, marks=needs_compiler)], ids=["", "asynchronous"])
def test_every_query_sees_what_it_declares(seed, is_decode, is_async, monkeypatch):
    """Would catch a row that reads through another's pages, padding that is answered, a query of a step with prompts
    that keeps what it would have seen dense, a table that a later step finds filled, an id that is taken for another's.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    module = vllm_stub.backend(monkeypatch)
    builder, layer = made(module, seed % 2, is_async)
    for _ in range(3):
        layer.impl.span_rows.followed.clear()
        common, expected = step(rng, layer.impl.span_rows, is_decode, rng.randint(0, 2) if is_decode else 0, is_async)
        metadata = builder.build(0, common)
        assert (metadata.whole is not None) == (common.max_query_len == 1)
        query = torch.randn(int(common.query_start_loc_cpu[-1]), NUM_HEADS, HEAD_DIM)
        output = torch.full_like(query, float("nan"))
        layer.impl.forward(layer, query, None, None, layer.kv_cache, metadata, output)
        for place, (row, seen) in enumerate(expected):
            wanted = attended(query[place], layer.kv_cache, common.block_table_tensor[row], seen, SCALE)
            torch.testing.assert_close(output[place], wanted, rtol=1e-4, atol=1e-5)


def test_more_queries_than_the_kernel_takes(monkeypatch):
    """Would catch queries behind the kernel's last row, which a recomputed answer has many of."""
    module = vllm_stub.backend(monkeypatch)
    monkeypatch.setattr(module, "MAX_BATCH", 4)
    builder, layer = made(module, tokens_first=False)
    rendered = render(worked_example(5, num_segments=3, num_steps=3), MARKERS)
    num_prompt = rendered.prompt.num_tokens
    followed = Followed(MARKERS, rendered.prompt, rendered.ids[num_prompt:])
    followed.catch_up()
    layer.impl.span_rows.followed[0] = followed
    length = torch.tensor([len(rendered.ids)])
    table = torch.randperm(NUM_PAGES)[None, :MAX_PAGES].int()
    metadata = builder.build(0, Common(torch.tensor([0, int(length)]), length, 1, int(length), table, length))
    assert len(metadata.parts) > 2 and all(len(part.queries) <= 4 for part in metadata.parts)
    query = torch.randn(int(length), NUM_HEADS, HEAD_DIM)
    output = layer.impl.forward(layer, query, None, None, layer.kv_cache, metadata, torch.empty_like(query))
    for place, seen in enumerate(rendered.visibility):
        wanted = attended(query[place], layer.kv_cache, table[0], seen, SCALE)
        torch.testing.assert_close(output[place], wanted, rtol=1e-4, atol=1e-5)


def test_switched_off_it_is_vllm_s_own(monkeypatch):
    """Would catch a plugin that changes what others serve."""
    module = vllm_stub.backend(monkeypatch, is_on=False)
    builder, _ = made(module, tokens_first=False)
    common, _ = step(random.Random(1), SpanRows(), True, 0)
    assert type(builder.build(0, common)) is Metadata and builder.supports_update_block_table
    assert builder.use_cascade_attention()
    assert builder.get_cudagraph_support(None, None) is CGSupport.ALWAYS


def test_switched_on_it_says_what_it_can(monkeypatch):
    """Would catch graphs of steps that the kernel does not serve, a shared prefix, a layer that does more."""
    module = vllm_stub.backend(monkeypatch)
    builder, layer = made(module, tokens_first=False)
    assert builder.get_cudagraph_support(None, None) is CGSupport.UNIFORM_SINGLE_TOKEN_DECODE
    assert not builder.supports_update_block_table and not builder.use_cascade_attention()
    layer.impl.sliding_window = (127, 0)
    layers = SimpleNamespace(static_forward_context={"layer": layer})
    with pytest.raises(ImplUnavailable, match="a sliding window"):
        module.SelfSelectedCUDABuilder(None, ["layer"], config(layers), "cpu")
