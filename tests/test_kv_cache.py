"""Keys and values: what is stored, and how far apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfspan_core.kv_cache import GRAIN_BYTES, KVCache, spread_capacity


@given(st.integers(1, 300_000), st.sampled_from([64, 96, 128, 192, 256, 512]))
def test_heads_are_spread_over_memory(capacity, position_bytes):
    """Would catch a distance of heads that is a multiple of three or five stacks, and memory wasted on the cure."""
    stored = spread_capacity(capacity, position_bytes)
    per_grain = GRAIN_BYTES // position_bytes
    assert capacity <= stored < capacity + 3 * per_grain
    assert stored % per_grain == 0
    assert (stored // per_grain) % 3 and (stored // per_grain) % 5


@pytest.mark.parametrize("capacity", [1, 80, 1280, 2560])
def test_what_is_stored_is_no_more_than_asked_for(capacity):
    """Would catch padding that shows: a cache is as long as its capacity, whatever lies between two heads."""
    cache = KVCache(2, 3, 128, capacity, torch.bfloat16, torch.device("cpu"), batch=2)
    assert cache.capacity == capacity
    assert {tensor.shape for tensor in (*cache.keys, *cache.values)} == {(2, 3, capacity, 128)}
    assert cache.keys[0].stride(1) == 128 * spread_capacity(capacity, 256)
    assert cache.row(1).keys[0].shape == (1, 3, capacity, 128)
    assert cache.like(7).keys[0].shape == (2, 3, 7, 128)
