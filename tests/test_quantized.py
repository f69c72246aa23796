"""Models with fewer bits, for evaluation: what is rounded, to what, and that both ways of answering see the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.models.model import SpanModel
from selfspan_core.paths import ADAPTERS, BASE
from selfspan_core.tasks.registry import get_task
from tests.support.slow import sampled
from training.data.generated import evaluation_set
from training.evaluation.batch_decode import decode_greedily
from training.evaluation.drafts import decode_by_drafts, would_write
from training.evaluation.quantized import (
    GROUP,
    QUANTIZATIONS,
    Quantization,
    load_quantized,
    rounded_cache,
    rounded_weight,
)

ADAPTER = ADAPTERS / "arithmetic-span"


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([4, 8]))
def test_a_weight_is_the_nearest_of_the_numbers_that_there_are(seed, bits):
    """Would catch a scale of the wrong axis, one of all groups together, and numbers beyond the bits."""
    weight = torch.randn(5, 3 * GROUP, generator=torch.Generator().manual_seed(seed))
    rounded, largest = rounded_weight(weight, bits), 2 ** (bits - 1) - 1
    groups = (weight, rounded) if bits == 8 else (weight.unflatten(1, (-1, GROUP)), rounded.unflatten(1, (-1, GROUP)))
    step = groups[0].abs().amax(-1, keepdim=True) / largest
    assert ((groups[0] - groups[1]).abs() <= step / 2 + 1e-6).all()
    numbers = groups[1] / step
    assert torch.allclose(numbers, numbers.round(), atol=1e-3) and numbers.abs().max() <= largest + 1e-3


def test_a_matrix_without_groups_is_refused():
    """Would catch a group that is cut at the end of a row."""
    with pytest.raises(ValueError, match="no groups of 32"):
        rounded_weight(torch.ones(2, GROUP + 1), 4)


def test_a_cache_rounds_each_token_and_head_by_itself():
    """Would catch a large key that takes the steps of all others, and numbers that fp8 has not and turns to NaN."""
    keys = torch.tensor([[[1.0, 0.5], [1000.0, 3.0]]])
    assert torch.allclose(rounded_cache(keys, "int8")[0, 0], keys[0, 0], atol=0.5 / 127)
    assert rounded_cache(keys, "fp8").tolist() == [[[1.0, 0.5], [448.0, 3.0]]]


@pytest.fixture(scope="module")
def drafts():
    """Three expressions with their steps, as the span adapter writes them."""
    task, tokenizer = get_task("arithmetic"), SpanModel.load(BASE).tokenizer
    return [task.render(one, tokenizer, True, with_steps=True) for one in evaluation_set(task, 3, 3, 7)]


KINDS = ["floats", "weights int8", "cache int8", "cache fp8", "weights int4, cache int8"]


@pytest.mark.parametrize("kind", sampled(KINDS, ["cache fp8", "weights int4, cache int8"]))
def test_one_pass_and_decoding_agree(kind, drafts):
    """Would catch a cache that is rounded in one of the two ways to an answer only."""
    model = load_quantized(BASE, ADAPTER, "cpu", torch.float32, QUANTIZATIONS[kind])
    markers = model.tokenizer.markers
    written = would_write(model, drafts, True)
    limit = max(len(one.ids) for one in drafts)
    decoded = decode_greedily(model, markers, drafts, True, True, limit)
    for draft, is_written, row in zip(drafts, written, decoded, strict=True):
        assert (row.ids == draft.ids[draft.prompt.num_tokens :]) == is_written
    assert decode_by_drafts(model, markers, drafts, True, True, limit, 1)[0] == decoded


def test_fewer_bits_change_what_is_computed(drafts):
    """Would catch rounding that reaches neither weights nor cache, so that every row of a table is that of floats."""
    prompt = drafts[0].prompt

    def first_logits(quantization: Quantization) -> torch.Tensor:
        model = load_quantized(BASE, ADAPTER, "cpu", torch.float32, quantization)
        reader = model.reading(_reader(model, len(drafts[0].ids)))
        reader.plan(0, None)
        ids = torch.tensor([drafts[0].ids[: prompt.num_tokens]])
        return model.forward_logits(ids, 0, reader)

    exact = first_logits(QUANTIZATIONS["floats"])
    assert torch.equal(exact, first_logits(Quantization()))
    moved = {kind: (first_logits(one) - exact).abs().max() for kind, one in QUANTIZATIONS.items() if kind != "floats"}
    assert all(one > 0 for one in moved.values()) and moved["weights int4"] > moved["weights int8"]


def _reader(model, capacity):
    from selfspan_core.attention.readers import make_reader

    return make_reader("dense", "gather", model.new_cache(capacity), model.device)
