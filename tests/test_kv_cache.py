"""Keys and values: what is stored, and how far apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cuda_kernels.padding import spread_capacity
from selfspan_core.attention.kv_cache import KVCache


@given(st.integers(1, 300_000), st.sampled_from([64, 128, 192, 256, 512]))
def test_heads_are_spread_over_memory(capacity, position_bytes):
    """Would catch a distance of heads that is a multiple of three or five stacks, and memory wasted on the cure."""
    stored = spread_capacity(capacity, position_bytes)
    assert capacity <= stored < capacity + 64
    distance = stored * position_bytes
    # 16 bytes: what the kernels' loads have to be aligned to.
    assert distance % 16 == 0
    assert distance % (3 * 65_536) and distance % (5 * 65_536)


@pytest.mark.parametrize(("capacity", "stored"), [(1280, 1312), (2560, 2576), (3520, 3536), (2048, 2048), (8192, 8192)])
def test_capacities_that_were_measured(capacity, stored):
    """Would catch a rule that lets the slow ones pass, or pads the fast ones: found on an H100."""
    assert spread_capacity(capacity, 256) == stored


@pytest.mark.parametrize("capacity", [1, 80, 1280, 2560])
def test_what_is_stored_is_no_more_than_asked_for(capacity):
    """Would catch padding that shows: a cache is as long as its capacity, whatever lies between two heads."""
    cache = KVCache(2, 3, 128, capacity, torch.bfloat16, torch.device("cpu"), batch=2)
    assert cache.capacity == capacity
    assert {tensor.shape for tensor in (*cache.keys, *cache.values)} == {(2, 3, capacity, 128)}
    assert cache.keys[0].stride(1) == 128 * spread_capacity(capacity, 256)
    assert cache.row(1).keys[0].shape == (1, 3, capacity, 128)
    assert cache.like(7).keys[0].shape == (2, 3, 7, 128)
