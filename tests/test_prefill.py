"""The pass over a prompt, padded: what it leaves in the cache, and what it says."""

import pytest
import torch

from selfspan_core.attention.readers import DenseReader
from selfspan_core.engine import prefill
from selfspan_core.engine.prefill import LENGTHS, PromptPass
from selfspan_core.engine.step_graphs import StepGraphs
from selfspan_core.models.model import SpanModel
from selfspan_core.models.weights import DecodeWeights
from tests.support.attention_problem import needs_cuda
from tests.support.engine_tools import tiny_hf
from tests.support.span_examples import VOCAB

BATCH, CAPACITY = 3, 256
NUM_TOKENS = (200, 1, 128, 127, 129, 192, 9)
"""Behind a long prompt come shorter ones, which find its ids where their padding is."""


@pytest.fixture(scope="module")
def weights():
    return DecodeWeights(SpanModel(tiny_hf()))


def prompts(seed=0):
    torch.manual_seed(seed)
    return [torch.randint(0, VOCAB, (length,)).tolist() for length in NUM_TOKENS]


def expected(model, ids):
    """Logits and cache of a pass over the prompt as it is."""
    cache = model.new_cache(CAPACITY)
    reader = DenseReader(cache)
    reader.plan(0, None)
    with torch.inference_mode():
        logits = model.forward_logits(torch.tensor([ids], device=model.device), 0, reader)
    return logits, cache


def check(weights, device_captures, tolerance):
    """Every prompt in a row of its own choosing; nothing else in the cache changes."""
    model = weights.model
    cache = model.new_cache(CAPACITY, BATCH)
    graphs = StepGraphs(model.device, device_captures)
    run = PromptPass(weights, cache, graphs)
    with torch.inference_mode():
        for number, ids in enumerate(prompts()):
            row = number % BATCH
            run.prepare(row, len(ids))
            cache._kv.fill_(7.0)
            logits = run(row, ids)
            wanted, alone = expected(model, ids)
            torch.testing.assert_close(logits[0], wanted, **tolerance)
            for layer in range(model.num_layers):
                for mine, theirs in zip(cache.first(layer, len(ids)), alone.first(layer, len(ids)), strict=True):
                    torch.testing.assert_close(mine[row], theirs[0], **tolerance)
            others = [other for other in range(BATCH) if other != row]
            assert (cache._kv[:, :, others] == 7.0).all()
            assert torch.equal(run(row, ids), logits), "the same prompt once more"


def test_a_padded_prompt_is_as_it_is(weights):
    """Would catch padding that is seen, a row that is another's, logits of the padding, ids of the prompt before."""
    check(weights, False, {"rtol": 1e-4, "atol": 1e-5})


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_captured_prompt_is_as_it_is(dtype):
    """Would catch a graph that keeps the row, the ids or the end of the prompt that it was captured with."""
    weights = DecodeWeights(SpanModel(tiny_hf().to("cuda", dtype)))
    check(weights, True, {"rtol": 3e-2, "atol": 3e-2 if dtype is torch.float16 else 0.2})


def lengths_of(weights, capacity):
    run = PromptPass(weights, weights.model.new_cache(capacity), StepGraphs(weights.model.device, False))
    return [run._padded(length) for length in (1, 128, 129, 700, 8192, 8193)]


def test_what_is_padded(weights, monkeypatch):
    """Would catch padding behind the end of the cache, or of a model that computes longer than the host launches."""
    assert lengths_of(weights, LENGTHS[-1]) == [128, 128, 192, 768, 8192, None]
    assert lengths_of(weights, 700) == [128, 128, 192, None, None, None]
    num_weights = sum(matrix.shape[0] * matrix.shape[1] for matrix in weights.matrices)
    monkeypatch.setattr(prefill, "MOST_PRODUCTS", 300 * num_weights)
    assert lengths_of(weights, LENGTHS[-1]) == [128, 128, 192, None, None, None]


def test_what_is_captured_once(weights):
    """Would catch a preparation that runs before every prompt, and takes as long as what it is to save."""
    run = PromptPass(weights, weights.model.new_cache(CAPACITY), StepGraphs(weights.model.device, False))
    warmed = []
    run._graphs.warm_up = lambda work: warmed.append(work)
    for length in (5, 100, 128, 130, 7):
        run.prepare(0, length)
    assert len(warmed) == 2


def test_a_preparation_leaves_other_rows_alone(weights):
    """Would catch a first prompt of its length that is tried out in the row begun before it, and overwrites the keys of
    the answer that this row is writing."""
    cache = weights.model.new_cache(CAPACITY, BATCH)
    run = PromptPass(weights, cache, StepGraphs(weights.model.device, False))
    run._graphs.warm_up = lambda work: work()
    with torch.inference_mode():
        run.prepare(0, 9)
        run(0, prompts()[-1])
        cache._kv.fill_(7.0)  # what row 0 has written since
        run.prepare(2, 200)
    assert (cache._kv[:, :, :2] == 7.0).all() and not (cache._kv[:, :, 2] == 7.0).all()
