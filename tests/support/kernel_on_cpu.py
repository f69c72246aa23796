"""The CUDA sources compiled for the CPU, with a stand-in for the instructions: their logic runs where no GPU is."""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from cuda_kernels.attention import plan_grid
from cuda_kernels.compile import FOLDER, KernelConfig, schedule_words
from tests.support.paths import ROOT

HERE = ROOT / "tests" / "cuda_on_cpu"
COMPILER = shutil.which("g++")


def compiled(name: str, macros: tuple[str, ...]) -> ctypes.CDLL:
    """One file of `cuda_on_cpu`, and with it the kernels' own source, compiled and loaded.

    With WATCH_RACES=1 in the environment the process ends at the first race, see `races.h`; slow. KERNEL_SOURCES is
    another folder of the kernels' source.
    """
    folder = Path(tempfile.mkdtemp(prefix="kernels-"))
    target = folder / "kernels.so"
    # Some distributions' longjmp would refuse to leave one fiber's stack for another's.
    flags = ["-std=c++20", "-Og", "-shared", "-fPIC", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]
    # The stand-in's folder first: <ptx.cuh> is found there.
    command = [COMPILER, *flags, f"-I{HERE}", f"-I{os.environ.get('KERNEL_SOURCES', FOLDER)}", *macros]
    if os.environ.get("WATCH_RACES") == "1":
        # In two steps: what the compiler calls for its thread sanitizer is ours, so that it must not be linked to.
        unlinked = folder / "kernels.o"
        subprocess.run(
            [*command, "-DWATCHES_RACES", "-fsanitize=thread", "-c", "-o", unlinked, HERE / name], check=True
        )
        subprocess.run([COMPILER, "-shared", "-o", target, unlinked], check=True)
    else:
        subprocess.run([*command, "-o", target, HERE / name], check=True)
    loaded = ctypes.CDLL(str(target))
    shutil.rmtree(folder)
    return loaded


@functools.cache
def library(config: KernelConfig) -> ctypes.CDLL:
    """The kernels of one configuration; compiled once per test run."""
    return compiled("kernels.cpp", config.macros())


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def strides(tensor: torch.Tensor) -> ctypes.Array:
    assert tensor.stride(-1) == 1
    return (ctypes.c_longlong * 3)(*tensor.stride()[:-1])


def vector_strides(tensor: torch.Tensor) -> ctypes.Array:
    """Of queries or outputs: row, head, query."""
    row, *query, head = strides(tensor)[: tensor.dim() - 1]
    return (ctypes.c_longlong * 3)(row, head, *query)


def table_of(rows: list[list[tuple[int, int]]], max_spans: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Interval lists as the kernel takes them: int32 `[B, max_spans, 2]`, unused ones senseless, and counts."""
    intervals = torch.full((len(rows), max_spans, 2), -7777, dtype=torch.int32)
    for row, spans in enumerate(rows):
        for i, span in enumerate(spans):
            intervals[row, i] = torch.tensor(span)
    return intervals, torch.tensor([len(spans) for spans in rows], dtype=torch.int32)


@dataclass
class Planned:
    """What the plan kernel leaves."""

    spans: torch.Tensor
    schedule: torch.Tensor
    arrived: torch.Tensor
    errors: torch.Tensor

    @property
    def num_visible(self) -> list[int]:
        """Of every row."""
        batch = len(self.errors)
        return self.schedule[-2 * batch : -batch].tolist()


def plan(
    config: KernelConfig,
    intervals: torch.Tensor,
    counts: torch.Tensor,
    capacity: int,
    num_kv_heads: int,
    num_blocks: int = 8,
    grid: tuple[int, int] | None = None,
    masks: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> Planned:
    """Run the plan kernel; everything that it has to write is poisoned before.

    Args:
        masks, positions: with several queries, as `SpanAttention.plan` takes them.
        num_blocks: work blocks of the attention kernel.
        grid: blocks and threads of the plan kernel, None: as it is launched.
    """
    batch, max_spans, _ = intervals.shape
    poison = lambda *shape: torch.full(shape, -12345, dtype=torch.int32)  # noqa: E731
    kernels = library(config)
    assert kernels.num_schedule_words(batch) == schedule_words(batch)
    num_done = torch.zeros(1, dtype=torch.int32)
    made = Planned(
        poison(batch, max_spans, 2 if config.num_queries == 1 else 4),
        poison(schedule_words(batch)),
        poison(config.column_blocks * batch * num_kv_heads),
        poison(batch),
    )
    kernels.run_plan(
        pointer(intervals),
        pointer(counts),
        batch,
        max_spans,
        capacity,
        pointer(made.spans),
        pointer(made.schedule),
        pointer(made.arrived),
        pointer(num_done),
        num_kv_heads,
        num_blocks,
        pointer(made.errors),
        pointer(masks),
        pointer(positions),
        *(grid or plan_grid(batch, max_spans, config.num_queries)),
    )
    assert not num_done.any(), "the counter is not back at zero"
    return made


@dataclass(frozen=True)
class Problem:
    """What attention is computed of.

    Attributes:
        query: `[B, H, D]`, or of several queries `[B, Q, H, D]`.
        keys, values: `[B, Hkv, capacity, D]`.
        rows: intervals of every row.
        scale: multiplies the scores.
        masks: with several queries: of every interval of every row, the bits of those that see it.
        positions: with several queries: of every row's first one.
    """

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    rows: list[list[tuple[int, int]]]
    scale: float = 0.1
    masks: list[list[int]] | None = None
    positions: list[int] | None = None

    def queries_table(self, max_spans: int) -> tuple[torch.Tensor, ...]:
        """Masks and positions as the kernel takes them, unused masks senseless; nothing for one query."""
        if self.masks is None:
            return ()
        masks = torch.full((len(self.masks), max_spans), -3, dtype=torch.int32)
        for row, bits in enumerate(self.masks):
            masks[row, : len(bits)] = torch.tensor(bits, dtype=torch.int32)
        return masks, torch.tensor(self.positions, dtype=torch.int32)

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query, self.keys, self.values


def attend(
    config: KernelConfig, problem: Problem, max_spans: int, num_blocks: int, block_order: list[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plan and attend; `[B, H, D]` and log-sum-exp `[B, H]`, with several queries `[B, Q, H, D]` and `[B, Q, H]`.

    Args:
        num_blocks: work blocks of the grid; block_order: in which its blocks run.
    """
    query, keys, values = problem.tensors
    num_kv_heads, capacity = keys.shape[1:3]
    intervals, counts = table_of(problem.rows, max_spans)
    planned = plan(
        config, intervals, counts, capacity, num_kv_heads, num_blocks, None, *problem.queries_table(max_spans)
    )
    cache = Cache(keys, strides(keys), values, strides(values), num_kv_heads)
    return attend_planned(config, query, cache, planned, problem.scale, num_blocks, block_order)


@dataclass(frozen=True)
class Cache:
    """Keys and values, and the steps of row, head and token in which the kernel reads them."""

    keys: torch.Tensor
    key_steps: ctypes.Array
    values: torch.Tensor
    value_steps: ctypes.Array
    num_kv_heads: int


def attend_planned(
    config: KernelConfig,
    query: torch.Tensor,
    cache: Cache,
    planned: Planned,
    scale: float,
    num_blocks: int,
    block_order: list[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `attend`."""
    kernels, batch, num_row_heads = library(config), len(query), len(query) * cache.num_kv_heads
    assert not planned.errors.any()
    # Of the query's layout, and behind it what must not be written.
    guarded = torch.full((query.numel() + 4096,), float("nan"), dtype=query.dtype)
    out = guarded.as_strided(query.shape, query.stride())
    lse = torch.full(query.shape[:-1], float("nan"))
    partials = torch.full((config.num_partials(num_row_heads, num_blocks) * config.partial_floats,), float("nan"))
    num_thread_blocks = num_blocks * config.column_blocks
    order = (ctypes.c_uint * num_thread_blocks)(*(block_order or range(num_thread_blocks)))
    kernels.run_attention(
        pointer(query),
        vector_strides(query),
        pointer(cache.keys),
        cache.key_steps,
        pointer(cache.values),
        cache.value_steps,
        pointer(out),
        vector_strides(out),
        pointer(lse),
        pointer(planned.spans),
        pointer(planned.schedule),
        batch,
        planned.spans.shape[1],
        ctypes.c_float(scale * 1.4426950408889634),
        pointer(partials),
        pointer(planned.arrived),
        1,  # the plan is done: the stricter case, nothing else may be read before the kernel waits
        order,
        num_thread_blocks,
        ctypes.c_longlong(config.shared_bytes(batch)),
    )
    assert not planned.arrived.any(), "counters are not back at zero"
    assert guarded[query.numel() :].isnan().all(), "written behind the output"
    return out, lse


def ranges(config: KernelConfig, num_visible: list[int], num_kv_heads: int, num_blocks: int) -> tuple[list[range], str]:
    """The work indices of every warp; and how the work space is divided: "equal" ranges or "whole" row-heads."""
    intervals, counts = table_of([[(0, visible)] if visible else [] for visible in num_visible], 1)
    capacity = max(1, *num_visible, 1)
    of_several = ()
    if config.num_queries > 1:
        masks = torch.full((len(num_visible), 1), 2**config.num_queries - 1, dtype=torch.int32)
        of_several = masks, torch.full((len(num_visible),), capacity - 1, dtype=torch.int32)
    planned = plan(config, intervals, counts, capacity, num_kv_heads, num_blocks, None, *of_several)
    found = torch.empty(num_blocks * config.num_warps, 3, dtype=torch.int32)
    library(config).run_ranges.restype = ctypes.c_bool
    mode = "whole" if library(config).run_ranges(pointer(planned.schedule), pointer(found)) else "equal"
    return [range(begin, begin + length, step) for begin, length, step in found.tolist()], mode
