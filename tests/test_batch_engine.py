"""Many requests through a few rows, on the CPU: every row as if it were alone."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from selfspan_core.engine import batch_step
from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.batch_step import BatchStep
from selfspan_core.engine.cuda_parts import CudaParts
from selfspan_core.engine.events import Failed, Finished, Prefilled
from selfspan_core.engine.prefill import PromptPass
from selfspan_core.engine.step import First
from selfspan_core.engine.torch_parts import TorchParts
from selfspan_core.errors import EngineLost, ImplUnavailable, PromptError
from selfspan_core.models.model import SpanModel
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans import protocol
from selfspan_core.spans.render import Rendered
from tests.support.asking import asked
from tests.support.attention_problem import needs_cuda
from tests.support.batch_tools import CAPACITY, alone, by_request, example, on_cuda
from tests.support.engine_tools import tiny_hf
from tests.support.span_examples import MARKERS, VOCAB


@pytest.fixture(scope="module")
def weights():
    return DecodeWeights(SpanModel(tiny_hf()))


EXAMPLES = [(seed, example(seed)) for seed in range(5)]


def engine_of(weights, batch, capacity, is_dense):
    return BatchEngine(weights, MARKERS, BatchShape(batch, capacity, is_dense))


@pytest.mark.parametrize("attention", ["dense", "sparse"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_request_as_if_it_were_alone(weights, attention, batch):
    """Would catch rows that mix, a row's end that disturbs others, ids of a former request, a wrong figure."""
    requests = []
    for seed in range(8):
        prompt, forced = example(seed)
        limit = 1 if seed == 2 else 17 if seed == 5 else 60
        requests.append(asked(prompt, max_new_tokens=limit, forced_tokens=forced if seed % 2 else None))
    engine = engine_of(weights, batch, CAPACITY, attention == "dense")
    events = by_request(engine.generate(requests))
    assert sorted(events) == list(range(8))
    for number, request in enumerate(requests):
        assert events[number] == alone(weights, request, attention), number
    # And again: nothing is left of the first time.
    assert by_request(engine.generate(requests[:2])) == {0: events[0], 1: events[1]}


@pytest.mark.parametrize("batch", [2, 3])
def test_what_nobody_watches_is_drawn_and_counted(weights, batch):
    """Would catch unwatched rows that never become free, that count wrongly, or that change the others' text."""
    requests = [asked(prompt, max_new_tokens=9 + seed, forced_tokens=forced) for seed, (prompt, forced) in EXAMPLES]
    engine = engine_of(weights, batch, CAPACITY, False)
    drawn = []
    for is_watched in (True, False):
        others = [replace(request, is_watched=is_watched) for request in requests[1:]]
        events = by_request(engine.generate([requests[0], *others, requests[0]]))
        drawn.append((events[0], events[len(requests)], engine.num_step_tokens))
        assert not engine.num_row_tokens
    assert drawn[0] == drawn[1]
    assert all(len(events[number]) == 1 for number in range(1, len(requests)))


def test_a_request_that_does_not_fit_fails_alone(weights):
    """Would catch one bad request that ends all others, or one that writes into its neighbour's cache."""
    good, _ = example(1)
    layout = protocol.PromptLayout(CAPACITY, 1, {})
    too_long = Rendered([MARKERS.bos] * CAPACITY, layout, loss_mask=[], runs=[])
    requests = [
        asked(good, max_new_tokens=5),
        asked(too_long),
        asked(good, rules=SimpleNamespace()),
        asked(good),
    ]
    engine = engine_of(weights, 2, CAPACITY, False)
    last = dict(engine.generate(requests))
    assert [type(last[number]) for number in range(4)] == [Finished, Failed, Failed, Finished]
    assert isinstance(last[1].error, PromptError) and "a row holds 160" in str(last[1].error)
    assert "rules: this batch was made without" in str(last[2].error)
    # Up to the end of the row.
    assert last[3].reason == "eos" or last[3].num_tokens == CAPACITY - good.prompt.num_tokens


def test_out_of_memory_fails_one_request_and_a_lost_device_all(weights, monkeypatch):
    """Would catch an engine that hides what happened, or goes on with a device that is gone."""
    prompt, _ = example(3)
    engine = engine_of(weights, 2, CAPACITY, False)
    prefill = PromptPass.__call__

    def out_of_memory(self, row, ids):
        if len(failures) < 1:
            failures.append(row)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prefill(self, row, ids)

    failures = []
    monkeypatch.setattr(PromptPass, "__call__", out_of_memory)
    last = dict(engine.generate([asked(prompt, max_new_tokens=4)] * 3))
    assert isinstance(last[0].error, torch.OutOfMemoryError) and isinstance(last[1], Finished) and len(last) == 3

    def lost(self, size):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(batch_step.BatchStep, "_one_step", lost)
    events = []
    with pytest.raises(EngineLost, match="cannot go on: CUDA error"):
        events.extend(engine.generate([asked(prompt, max_new_tokens=4)] * 3))
    with pytest.raises(EngineLost):
        engine.generate([asked(prompt)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forced_tokens": [-1, 3]}, "forced_tokens holds the id -1"),
        ({"forced_tokens": [10**6]}, "forced_tokens holds the id 1000000"),
    ],
    ids=str,
)
def test_impossible_requests_fail_alone(weights, changes, message):
    """Would catch a bad number that costs all others the engine, or is read as an address on the device."""
    good, _ = example(1)
    engine = engine_of(weights, 2, CAPACITY, False)
    last = dict(engine.generate([asked(good, max_new_tokens=5), asked(good, **changes), asked(good)]))
    assert [type(last[number]) for number in range(3)] == [Finished, Failed, Finished] and not engine.is_lost
    assert message in str(last[1].error)


def test_a_prompt_of_impossible_ids_fails_alone(weights):
    """Would catch an id beyond the vocabulary that is looked up all the same."""
    layout = protocol.PromptLayout(3, 1, {})
    prompts = [Rendered([MARKERS.bos, 10**6, 7], layout, loss_mask=[], runs=[]), example(1)[0]]
    last = dict(engine_of(weights, 1, CAPACITY, False).generate([asked(p, max_new_tokens=3) for p in prompts]))
    assert "the prompt holds the id 1000000" in str(last[0].error) and isinstance(last[1], Finished)


def test_a_device_lost_while_a_request_begins(weights, monkeypatch):
    """Would catch an engine that fails one request after the other for ever, and tells those that run nothing."""
    prompt, _ = example(3)
    prefill, calls = PromptPass.__call__, []

    def lost(self, row, ids):
        calls.append(row)
        if len(calls) == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return prefill(self, row, ids)

    monkeypatch.setattr(PromptPass, "__call__", lost)
    engine = engine_of(weights, 2, CAPACITY, False)
    events = []
    with pytest.raises(EngineLost, match="illegal memory access") as raised:
        for pair in engine.generate(asked(prompt, max_new_tokens=9) for _ in itertools.count()):
            events.append(pair)
    assert [(number, type(event)) for number, event in events] == [(0, Failed), (1, Failed)]
    assert isinstance(raised.value.__cause__, RuntimeError) and raised.value.__cause__ is not raised.value
    assert engine.is_lost


def test_a_device_lost_while_closing_is_known_afterwards(weights, monkeypatch):
    """Would catch Stop that shows the device's error, and an engine that takes the next request for a dead device."""
    prompt, _ = example(3)
    engine = engine_of(weights, 2, CAPACITY, False)
    running = engine.generate([asked(prompt, max_new_tokens=30)] * 2)
    next(running)

    def lost(self, row):
        raise RuntimeError("CUDA error: the device is gone")

    monkeypatch.setattr(batch_step.BatchStep, "clear", lost)
    running.close()
    with pytest.raises(EngineLost, match="the device is gone"):
        engine.generate([asked(prompt)])


def test_one_use_at_a_time_and_closing_frees(weights):
    """Would catch two callers whose rows mix, or rows that stay taken after Stop."""
    prompt, _ = example(4)
    engine = engine_of(weights, 2, CAPACITY, False)
    running = engine.generate([asked(prompt, max_new_tokens=30)] * 5)
    assert isinstance(next(running)[1], Prefilled)
    with pytest.raises(RuntimeError, match="other requests already"):
        engine.generate([])
    running.close()
    assert len(by_request(engine.generate([asked(prompt, max_new_tokens=30)] * 2))) == 2
    never_begun = engine.generate([asked(prompt)])
    never_begun.close()
    assert list(engine.generate([])) == []


def test_sampling_depends_on_the_request_alone(weights):
    """Would catch draws that depend on who else is in the batch."""
    requests = [asked(example(s)[0], max_new_tokens=20, temperature=1.3, top_p=0.9, seed=s) for s in range(4)]
    together = by_request(engine_of(weights, 4, CAPACITY, False).generate(requests))
    for number, request in enumerate(requests):
        assert by_request(engine_of(weights, 1, CAPACITY, False).generate([request]))[0] == together[number]
    assert together[0] != by_request(engine_of(weights, 1, CAPACITY, False).generate([requests[1]]))[0]


@pytest.mark.parametrize(
    ("batch", "capacity", "attention", "message"),
    [(0, 9, "dense", "batch is 1"), (1, 10**6, "dense", "capacity is 2 to 1024")],
)
def test_wrong_arguments_are_named(weights, batch, capacity, attention, message):
    """Would catch a bad size that only fails later, somewhere else."""
    with pytest.raises(ValueError, match=message):
        engine_of(weights, batch, capacity, attention == "dense")


def test_without_16_bit_floats_the_reason_is_given(weights):
    """Would catch a captured engine that fails somewhere inside, or falls back in silence."""
    with pytest.raises(ImplUnavailable, match="decoding in a captured graph: dtype"):
        BatchStep(weights, MARKERS, BatchShape(1, 9, False), parts=CudaParts)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("is_dense", [False, True])
@pytest.mark.parametrize(("num_kv_heads", "vocab_size"), [(6, VOCAB), (2, VOCAB + 4 - VOCAB % 8)])
def test_gpu_same_logits_as_pytorchs_operations(is_dense, num_kv_heads, vocab_size):
    """Would catch a value that is baked into the graph, a kernel in the wrong place, rows that mix, a lost id."""
    weights = on_cuda(num_key_value_heads=num_kv_heads, vocab_size=vocab_size)
    shape = BatchShape(5, CAPACITY, is_dense)
    steps = [BatchStep(weights, MARKERS, shape, parts=parts) for parts in (CudaParts, TorchParts)]
    ids = [[], []]
    largest = 0.0
    for number in range(40):
        for row in range(5):
            if (number + 3 * row) % 17 == 0:
                rendered, forced = example(number + row)
                for step in steps:
                    step.clear(row)
                    step.begin(row, asked(rendered, forced_tokens=forced[: 10 + row]), 60)
        for step in steps:
            step.launch()
        for step, seen in zip(steps, ids, strict=True):
            while step.num_outstanding:
                outcome = step.collect()
                seen.append(outcome.id if isinstance(outcome, First) else outcome.tokens)
        if ids[0] != ids[1]:
            break  # a tie that rounding decided otherwise: from here on they write different texts
        active = [row for row, tokens in enumerate(ids[0][-1]) if tokens]
        wanted = steps[1]._logits[1][active].float()
        largest = max(largest, wanted.abs().max().item())
        assert (steps[0]._logits[1][active].float() - wanted).abs().max() < 0.05 * largest
    assert number > 20


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("batch", [1, 5, 40, 70])
def test_gpu_same_logits_with_large_products(batch):
    """Would catch a step whose large products go wrong, on Hopper GPUs those of the tensor cores' own kernel."""
    weights = on_cuda(
        hidden_size=2048, intermediate_size=4096, num_attention_heads=32, num_key_value_heads=32, vocab_size=4096
    )
    shape = BatchShape(batch, CAPACITY, False)
    steps = [BatchStep(weights, MARKERS, shape, parts=parts) for parts in (CudaParts, TorchParts)]
    for row in range(batch):
        rendered, forced = example(row)
        start = asked(rendered, forced_tokens=forced)
        for step in steps:
            step.begin(row, start, len(forced))
            step.collect()
    for _ in range(12):
        ids = []
        for step in steps:
            step.launch()
            ids.append(step.collect().tokens)
        assert ids[0] == ids[1]
        logits = [step._logits[1][[bool(tokens) for tokens in ids[0]]].float() for step in steps]
        assert (logits[0] - logits[1]).abs().max() < 0.05 * logits[1].abs().max()


@pytest.mark.gpu
@needs_cuda
def test_gpu_many_requests_through_a_few_rows():
    """Would catch memory that grows with every request, or a request that disturbs another."""
    weights = on_cuda(num_key_value_heads=2)
    engine = engine_of(weights, 16, CAPACITY, False)
    requests = [asked(example(seed % 40)[0], max_new_tokens=1 + seed % 30) for seed in range(1000)]
    first = by_request(engine.generate(requests[:120]))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    every = by_request(engine.generate(requests))
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    assert len(every) == 1000 and all(events[-1][0] in ("eos", "length") for events in every.values())
    assert sum(every[number] == events for number, events in first.items()) >= 118, "other than ties of rounding"


@pytest.mark.gpu
@needs_cuda
def test_gpu_no_room_is_an_error_of_the_one_who_asks():
    """Would catch an engine that does not fit and takes the device with it."""
    weights = on_cuda()
    with pytest.raises(torch.OutOfMemoryError):
        engine_of(weights, 200_000_000, 1024, False)
    prompt, _ = example(3)
    assert len(dict(engine_of(weights, 2, CAPACITY, False).generate([asked(prompt, max_new_tokens=4)] * 3))) == 3
