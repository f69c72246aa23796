"""The CUDA sources compiled for the CPU, with a stand-in for the instructions: their logic runs where no GPU is."""

import ctypes
import functools
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
    """One file of `cuda_on_cpu`, and with it the kernels' own source, compiled and loaded."""
    folder = Path(tempfile.mkdtemp(prefix="kernels-"))
    target = folder / "kernels.so"
    # Some distributions' longjmp would refuse to leave one fiber's stack for another's.
    flags = ["-std=c++20", "-O2", "-shared", "-fPIC", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]
    # The stand-in's folder first: <ptx.cuh> is found there.
    command = [COMPILER, *flags, f"-I{HERE}", f"-I{FOLDER}", *macros, "-o", target, HERE / name]
    subprocess.run(command, check=True)
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
) -> Planned:
    """Run the plan kernel; everything that it has to write is poisoned before.

    Args:
        num_blocks: of the attention kernel; grid: blocks and threads of the plan kernel, None: as it is launched.
    """
    batch, max_spans, _ = intervals.shape
    poison = lambda *shape: torch.full(shape, -12345, dtype=torch.int32)  # noqa: E731
    kernels = library(config)
    assert kernels.num_schedule_words(batch) == schedule_words(batch)
    num_done = torch.zeros(1, dtype=torch.int32)
    made = Planned(
        poison(batch, max_spans, 2), poison(schedule_words(batch)), poison(batch * num_kv_heads), poison(batch)
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
        *(grid or plan_grid(batch, max_spans)),
    )
    assert not num_done.any(), "the counter is not back at zero"
    return made


@dataclass(frozen=True)
class Problem:
    """What attention is computed of.

    Attributes:
        query: `[B, H, D]`.
        keys, values: `[B, Hkv, capacity, D]`.
        rows: intervals of every row.
        scale: multiplies the scores.
    """

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    rows: list[list[tuple[int, int]]]
    scale: float = 0.1

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query, self.keys, self.values


def attend(
    config: KernelConfig, problem: Problem, max_spans: int, num_blocks: int, block_order: list[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plan and attend; `[B, H, D]` and log-sum-exp `[B, H]`.

    Args:
        num_blocks: of the grid; block_order: in which they run.
    """
    query, keys, values = problem.tensors
    kernels = library(config)
    batch, num_heads = query.shape[:2]
    num_kv_heads, capacity = keys.shape[1:3]
    intervals, counts = table_of(problem.rows, max_spans)
    planned = plan(config, intervals, counts, capacity, num_kv_heads, num_blocks)
    assert not planned.errors.any()
    out = torch.full_like(query, float("nan"))
    lse = torch.full((batch, num_heads), float("nan"))
    partials = torch.full(
        (config.num_partials(batch * num_kv_heads, num_blocks) * config.partial_floats,), float("nan")
    )
    shared_bytes = config.shared_bytes(batch)
    order = (ctypes.c_uint * num_blocks)(*(block_order or range(num_blocks)))
    kernels.run_attention(
        pointer(query),
        strides(query),
        pointer(keys),
        strides(keys),
        pointer(values),
        strides(values),
        pointer(out),
        strides(out),
        pointer(lse),
        pointer(planned.spans),
        pointer(planned.schedule),
        batch,
        max_spans,
        ctypes.c_float(problem.scale * 1.4426950408889634),
        pointer(partials),
        pointer(planned.arrived),
        1,  # the plan is done: the stricter case, nothing else may be read before the kernel waits
        order,
        num_blocks,
        ctypes.c_longlong(shared_bytes),
    )
    assert not planned.arrived.any(), "counters are not back at zero"
    return out, lse


def ranges(config: KernelConfig, num_visible: list[int], num_kv_heads: int, num_blocks: int) -> tuple[list[range], str]:
    """The work indices of every warp; and how the work space is divided: "equal" ranges or "whole" row-heads."""
    intervals, counts = table_of([[(0, visible)] if visible else [] for visible in num_visible], 1)
    planned = plan(config, intervals, counts, max(1, *num_visible, 1), num_kv_heads, num_blocks)
    found = torch.empty(num_blocks * config.num_warps, 3, dtype=torch.int32)
    library(config).run_ranges.restype = ctypes.c_bool
    mode = "whole" if library(config).run_ranges(pointer(planned.schedule), pointer(found)) else "equal"
    return [range(begin, begin + length, step) for begin, length, step in found.tolist()], mode
