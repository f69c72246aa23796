"""The plan of a paged cache, and attention over it, by the kernels' sources compiled for the CPU; and such caches."""

import ctypes
import random

import torch

from cuda_kernels.compile import KernelConfig, schedule_words
from cuda_kernels.paged import PageLayout, pages_threads
from tests.support.kernel_on_cpu import Cache, Planned, attend_planned, library, pointer, table_of

ORDERS = ("heads first", "tokens first", "keys beside values")


def made_pages(keys: torch.Tensor, values: torch.Tensor, page_size: int, order: str, seed: int):
    """A cache's keys and values `[B, Hkv, capacity, D]` in pages, of which some belong to nobody.

    Returns:
        Keys and values `[num_pages, Hkv, page_size, D]`, and the table, int32 `[B, max_pages]`; what no row has is NaN.
    """
    batch, num_heads, capacity, head_dim = keys.shape
    max_pages = -(-capacity // page_size)
    num_pages = batch * max_pages + 3
    tokens_first = order != "heads first"
    shape = (num_pages, page_size, num_heads) if tokens_first else (num_pages, num_heads, page_size)
    if order == "keys beside values":
        both = torch.full((num_pages, 2, *shape[1:], head_dim), float("nan"), dtype=keys.dtype)
        paged = [both[:, 0], both[:, 1]]
    else:
        paged = [torch.full((*shape, head_dim), float("nan"), dtype=keys.dtype) for _ in range(2)]
    paged = [one.transpose(1, 2) if tokens_first else one for one in paged]
    places = random.Random(seed).sample(range(num_pages), batch * max_pages)
    table = torch.tensor(places, dtype=torch.int32).view(batch, max_pages)
    for row in range(batch):
        for page in range(max_pages):
            first = page * page_size
            num = min(page_size, capacity - first)
            for to, given in zip(paged, (keys, values), strict=True):
                to[table[row, page], :, :num] = given[row, :, first : first + num]
    return paged[0], paged[1], table


def plan_pages(
    config: KernelConfig,
    rows: list[list[tuple[int, int]]],
    table: torch.Tensor,
    layout: PageLayout,
    max_intervals: int,
    num_kv_heads: int,
    num_blocks: int = 8,
    counts: list[int] | None = None,
    num_threads: int | None = None,
) -> Planned:
    """Run the plan kernel; everything that it has to write is poisoned before."""
    batch, max_pages = table.shape
    intervals, given = table_of(rows, max_intervals)
    if counts is not None:
        given = torch.tensor(counts, dtype=torch.int32)
    poison = lambda *shape: torch.full(shape, -12345, dtype=torch.int32)  # noqa: E731
    max_spans, num_done = max_intervals + max_pages, torch.zeros(1, dtype=torch.int32)
    made = Planned(
        poison(batch, max_spans, 2), poison(schedule_words(batch)), poison(batch * num_kv_heads), poison(batch)
    )
    library(config).run_plan_pages(
        *(pointer(tensor) for tensor in (intervals, given, table)),
        *(batch, max_intervals, max_pages, layout.page_size, layout.page_step, layout.num_pages),
        pointer(made.spans),
        max_spans,
        *(pointer(tensor) for tensor in (made.schedule, made.arrived, num_done)),
        *(num_kv_heads, num_blocks),
        pointer(made.errors),
        num_threads or pages_threads(max_spans),
    )
    assert not num_done.any(), "the counter is not back at zero"
    return made


def attend_pages(config, query, keys, values, planned, scale, num_blocks):
    """Attention over a plan of pages; see `kernel_on_cpu.attend`."""
    layout = PageLayout.of(keys)
    steps = [(ctypes.c_longlong * 3)(0, tensor.stride(1), layout.token_step(tensor)) for tensor in (keys, values)]
    cache = Cache(keys, steps[0], values, steps[1], keys.shape[1])
    return attend_planned(config, query, cache, planned, scale, num_blocks)
