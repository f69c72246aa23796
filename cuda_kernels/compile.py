"""Compile the kernels at run time, once per configuration and device; CuPy keeps the result on disk, except of those
with instructions that only one architecture has (`load_for`).

A configuration is the set of macros that the sources need: head_dim, group size, element type, warps per block,
queries per row.
"""

import functools
import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "csrc"
INCLUDE = re.compile(r"^#include <([^>]+)>", re.MULTILINE)
HEAD_DIMS = (64, 96, 128)
MAX_GROUP_SIZE = 16
MAX_QUERIES = 16
MAX_COLUMNS, FEW_COLUMNS = 32, 16
"""Of a warp: queries times heads of a group (columns.cuh); the fewer where row-heads are split among many blocks."""
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# Warps per multiprocessor (WARPS_PER_SM in attention.cu), in as few blocks as their shared memory allows.
WARPS_PER_SM = 8
WARPS_PER_BLOCK = (8, 4, 2)


def schedule_words(batch: int) -> int:
    """Length of a schedule in words of 32 bits (struct Schedule in schedule.cuh, and the rows' part behind it)."""
    return 10 + 3 * batch + 1


@dataclass(frozen=True)
class KernelConfig:
    """The compile-time parameters of the sources.

    Attributes:
        head_dim: 64, 96 or 128.
        group_size: query heads per key/value head, 1 to 16.
        is_bf16: bfloat16, otherwise float16.
        num_warps: per block of the attention kernel.
        num_queries: of a row, 1 to 16.
        max_columns: of a warp, MAX_COLUMNS or FEW_COLUMNS.
    """

    head_dim: int
    group_size: int
    is_bf16: bool
    num_warps: int
    num_queries: int = 1
    max_columns: int = MAX_COLUMNS

    @property
    def blocks_per_sm(self) -> int:
        """Blocks that a multiprocessor's registers hold (BLOCKS_PER_SM in attention.cu)."""
        return WARPS_PER_SM // self.num_warps

    @property
    def column_blocks(self) -> int:
        """Blocks side by side that read the same tokens for different queries (COLUMN_BLOCKS in columns.cuh)."""
        return -(-self.num_queries // (self.max_columns // self.group_size))

    @property
    def columns(self) -> int:
        """Queries of a column block, times the heads of a group (COLUMNS in columns.cuh)."""
        return self.group_size * -(-self.num_queries // self.column_blocks)

    @property
    def is_wide(self) -> bool:
        """Whether shared memory holds one partial result per warp, not two (IS_WIDE in columns.cuh)."""
        return self.columns > 16

    @property
    def partial_floats(self) -> int:
        """Floats of one partial result (PARTIAL_FLOATS in partial.cuh)."""
        return self.columns * (self.head_dim + 4)

    def shared_bytes(self, batch: int) -> int:
        """Dynamic shared memory of one block (struct SharedStorage in attention.cu)."""
        partials = (1 if self.is_wide else 2) * self.num_warps * self.partial_floats
        # Four words per slot, and two pending slots.
        return 4 * (partials + 4 * (2 * self.num_warps + 2) + schedule_words(batch))

    def num_partials(self, num_row_heads: int, num_blocks: int) -> int:
        """Partial results in global memory: of every column block, the first split of every row-head, and one more per
        work block; with many columns, also one per warp."""
        per_block = 1 + (self.num_warps if self.is_wide else 0)
        return self.column_blocks * (num_row_heads + num_blocks * per_block)

    def macros(self) -> tuple[str, ...]:
        """The macros, as compiler options."""
        macros = {
            "HEAD_DIM": self.head_dim,
            "GROUP": self.group_size,
            "IS_BF16": int(self.is_bf16),
            "NUM_WARPS": self.num_warps,
            "NUM_QUERIES": self.num_queries,
            "MAX_COLUMNS": self.max_columns,
        }
        return tuple(f"-D{name}={value}" for name, value in macros.items())


def columns_of_warp(num_row_heads: int, num_sms: int) -> int:
    """Most columns of a warp: few where row-heads are fewer than multiprocessors, and each is split among many blocks.

    (H100, 32/8 heads, 8 queries: 1 x 16384 takes 40 us with 16 columns and 50 with 32; 32 x 2048 takes 121 and 110.)
    """
    return MAX_COLUMNS if num_row_heads >= num_sms else FEW_COLUMNS


def choose_config(
    head_dim: int,
    group_size: int,
    is_bf16: bool,
    batch: int,
    limit: int,
    num_queries: int = 1,
    max_columns: int = MAX_COLUMNS,
) -> KernelConfig:
    """The configuration with the most warps whose shared memory stays within `limit` bytes.

    Raises:
        ValueError: not even the smallest does.
    """
    for num_warps in WARPS_PER_BLOCK:
        config = KernelConfig(head_dim, group_size, is_bf16, num_warps, num_queries, max_columns)
        if config.shared_bytes(batch) <= limit:
            return config
    raise ValueError(f"a block of this GPU has {limit} bytes of shared memory, too few for {config}")


def source(name: str) -> str:
    """The text of one file of the sources."""
    return (FOLDER / name).read_text(encoding="utf-8")


def included_files(name: str) -> tuple[str, ...]:
    """The sources that one file is compiled from: itself and what it includes of this folder, sorted by name."""
    found, pending = set(), [name]
    while pending:
        file = pending.pop()
        if file not in found and (FOLDER / file).is_file():
            found.add(file)
            pending += INCLUDE.findall(source(file))
    return tuple(sorted(found))


@functools.cache
def digest(name: str) -> str:
    """Digest of the sources that one kernel file is compiled from, 8 hex digits."""
    return hashlib.sha256("".join(map(source, included_files(name))).encode()).hexdigest()[:8]


def common_options(name: str) -> tuple[str, ...]:
    """Compiler options of one kernel file, for all configurations."""
    # CuPy's disk cache looks at the options, and not into included files.
    return ("-std=c++17", f"-I{FOLDER}", f"-DSOURCES_DIGEST=0x{digest(name)}")


def on_device(device_index: int):
    """Context that makes a device CuPy's current one, to load kernels and query their properties there."""
    import cupy

    return cupy.cuda.Device(device_index)


@functools.cache
def load(name: str, function: str, macros: tuple[str, ...], device_index: int):
    """One kernel (`cupy.RawKernel`) of one source, compiled for one device; its architecture decides.

    Compiling takes about a second the first time on a machine.
    """
    import cupy

    with on_device(device_index):
        return cupy.RawModule(code=source(name), options=(*common_options(name), *macros)).get_function(function)


@functools.cache
def load_for(name: str, function: str, macros: tuple[str, ...], architecture: str, device_index: int):
    """One kernel (`cupy.RawKernel`) with instructions that only one architecture has, like "90a".

    CuPy's compiler does not know such names, so every process compiles the kernel again; this takes half a second.
    """
    import cupy

    machine_code, _ = compile_for(macros, architecture, name)
    with tempfile.TemporaryDirectory() as folder, on_device(device_index):
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(machine_code)
        kernel = cupy.RawModule(path=str(path)).get_function(function)
        # Loaded here, while the temporary file exists.
        assert kernel.kernel.ptr
    return kernel


def compile_for(macros: tuple[str, ...], architecture: int | str, name: str) -> tuple[bytes, str]:
    """Machine code for an architecture (75, 80, "90a", ...) and the compiler's resource report; needs NVRTC but no GPU.

    Raises:
        RuntimeError: it does not compile; the message is the compiler's log.
    """
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(source(name), name, (), ())
    try:
        # Without NVRTC's cache: there is no report for cached kernels.
        options = (
            *common_options(name),
            *macros,
            f"--gpu-architecture=sm_{architecture}",
            "--ptxas-options=--verbose",
            "--no-cache",
        )
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            raise RuntimeError(nvrtc.getProgramLog(program)) from error
        return nvrtc.getCUBIN(program), nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)
