"""Long prompts on a CPU, which go through the decoder in pieces."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from selfspan_core.attention import fused
from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.attention.readers import DenseReader, ReferenceReader
from selfspan_core.engine import host_step
from selfspan_core.engine.decode_loop import DecodeLoop
from selfspan_core.engine.events import Failed, Prefilled, PromptPart
from selfspan_core.engine.host_step import HostStep
from selfspan_core.models.model import SpanModel
from tests.support.asking import asked
from tests.support.batch_tools import CAPACITY, by_request, example
from tests.support.engine_tools import tiny_hf
from tests.support.span_examples import MARKERS

CPU = torch.device("cpu")
ATTENTIONS = ("dense", "sparse")


@pytest.fixture(scope="module")
def model():
    return SpanModel(tiny_hf())


def host(model, batch, attention):
    return DecodeLoop(HostStep(model.weights, MARKERS, batch, CAPACITY, attention == "dense"))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_long_prompt_in_pieces(model, attention, monkeypatch):
    """Would catch a piece that does not see the ones before it, a last piece whose id is lost, a row that goes on with
    half a prompt, a run that cannot be stopped before its prompt is through, and a piece that is told too late, twice
    or with another's seconds."""
    pairs = [example(seed, num_steps=2) for seed in range(3)]
    requests = [asked(prompt, forced_tokens=forced, with_logits=True) for prompt, forced in pairs]
    whole = by_request(host(model, 2, attention).generate(requests))
    monkeypatch.setattr(host_step, "piece_tokens", lambda _: 5)
    loop, found, parts = host(model, 2, attention), [], [[], [], []]
    for number, event in loop.generate(requests):
        if isinstance(event, PromptPart):
            parts[number].append(event)
            continue
        if isinstance(event, Prefilled):
            assert 0 < sum(part.seconds for part in parts[number]) == pytest.approx(event.told_s)
            assert event.told_s < event.seconds
            event = replace(event, told_s=0.0)
        found.append((number, event))
    # The first piece is done when a row begins, and Prefilled comes of the last one.
    sizes = [prompt.prompt.num_tokens for prompt, _ in pairs]
    assert [[part.num_done for part in told] for told in parts] == [list(range(10, size, 5)) for size in sizes]
    assert min(map(len, parts)) > 1 and by_request(found) == whole
    running = loop.generate(requests)
    number, event = next(running)
    assert (number, event.num_done) == (0, 10) and event.seconds > 0
    running.close()
    assert loop._step.num_outstanding == 0 and by_request(loop.generate(requests[:1])).keys() == {0}


def test_a_piece_that_fails_ends_its_request_alone(model, monkeypatch):
    """Would catch an engine that is given up, or another row that is counted on, for a piece that found no memory."""
    monkeypatch.setattr(host_step, "piece_tokens", lambda _: 5)
    pairs, loop, calls = [example(seed, num_steps=2) for seed in range(2)], host(model, 2, "sparse"), itertools.count()
    requests = [asked(prompt, forced_tokens=forced) for prompt, forced in pairs]
    expected = by_request(loop.generate(requests[1:]))[0]
    prefill = loop._step._prefill

    def failing(ids, start, reader):
        if next(calls) == 3:  # each row has its first piece at once
            raise MemoryError("no memory")
        return prefill(ids, start, reader)

    monkeypatch.setattr(loop._step, "_prefill", failing)
    events = list(loop.generate(requests))
    (failed,) = [event for number, event in events if number == 0 and not isinstance(event, PromptPart)]
    assert isinstance(failed, Failed) and isinstance(failed.error, MemoryError) and not loop.is_lost
    assert by_request((0, event) for number, event in events if number == 1)[0] == expected


@pytest.mark.parametrize("has_amx", [False, True])
@pytest.mark.parametrize("heads", [(6, 2), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_queries_agree_with_the_oracle(dtype, heads, has_amx, monkeypatch):
    """Would catch a piece that sees a token behind its own, or misses one before, a mask of another piece's length, and
    float32 that comes back to a model of 16 bits."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    generator, head_dim, sizes = torch.Generator().manual_seed(3), 16, (fused.MANY_QUERIES + 5, 97, 64, 3)
    dense, oracle = (
        kind(KVCache(1, heads[1], head_dim, sum(sizes), dtype, CPU)) for kind in (DenseReader, ReferenceReader)
    )
    start = 0
    for size in sizes:
        query, key, value = (
            torch.randn(1, num, size, head_dim, generator=generator).to(dtype) for num in (heads[0], heads[1], heads[1])
        )
        for reader in (dense, oracle):
            reader.plan(start, None)
        got, want = (reader.attend(0, query, key, value, head_dim**-0.5) for reader in (dense, oracle))
        assert got.dtype is dtype
        torch.testing.assert_close(got.float(), want.float(), atol=2e-2 if dtype is torch.bfloat16 else 1e-5, rtol=1e-2)
        start += size


@pytest.mark.parametrize(("num_weights", "tokens"), [(10**6, 34944), (134 * 10**6, 256), (10**11, 64)])
def test_a_piece_takes_any_model_about_as_long(num_weights, tokens):
    """Would catch a large model whose Stop waits for minutes, and a small one that is slowed down for nothing."""
    matrix = SimpleNamespace(shape=(num_weights, 1))
    assert host_step.piece_tokens(SimpleNamespace(matrices=[matrix])) == tokens
