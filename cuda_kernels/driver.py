"""Launch a kernel so that it begins while the one before it in the stream still runs (programmatic dependent launch).

From sm_90 on. Such a kernel waits on the device until the previous kernel's results are written (`wait_for_inputs` in
ptx.cuh); its start and its work before that wait overlap with the previous kernel. CuPy does not expose this, so the
driver is called directly: cuLaunchKernelEx, CUDA driver API 13.0, "Execution Control". In a captured graph the launch
becomes a programmatic edge.
"""

import ctypes
import functools
from typing import Any

import numpy as np

CLUSTER_DIMENSION, PROGRAMMATIC_STREAM_SERIALIZATION, SHARED_MEMORY_CARVEOUT = 4, 6, 14
"""CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION and
CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT in cuda.h."""
C_TYPES = {
    np.dtype(np.uint64): ctypes.c_uint64,
    np.dtype(np.int64): ctypes.c_int64,
    np.dtype(np.int32): ctypes.c_int32,
    np.dtype(np.float32): ctypes.c_float,
}


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: the number of the attribute, and a union of 64 bytes, here of integers."""

    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int * 16)]


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    ]


@functools.cache
def driver() -> ctypes.CDLL:
    """The CUDA driver."""
    return ctypes.CDLL("libcuda.so.1")


def launch_overlapping(
    function: int,
    stream: int,
    grid: tuple[int, ...],
    num_threads: int,
    arguments: tuple,
    shared_bytes: int = 0,
    carveout_percent: int | None = None,
) -> None:
    """Launch on a grid of blocks, and so many threads of each, in the current context.

    Args:
        function: CUfunction, as a number. stream: CUstream, as a number.
        arguments: NumPy scalars of the parameters' types, or ctypes structures.
        shared_bytes: dynamic shared memory of a block.
        carveout_percent: of a multiprocessor's fast memory to be shared memory, the rest is cache; None: as the driver
            chooses.

    Raises:
        RuntimeError: the driver refuses; the message has its error number.
    """
    values: list[Any] = [  # ctypes has no common base type for its numbers and structures
        argument if isinstance(argument, ctypes.Structure) else C_TYPES[argument.dtype](argument.item())
        for argument in arguments
    ]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    wanted = {PROGRAMMATIC_STREAM_SERIALIZATION: 1}
    if carveout_percent is not None:
        wanted[SHARED_MEMORY_CARVEOUT] = carveout_percent
    attributes = (_Attribute * len(wanted))(*(_Attribute(name, b"", (value,)) for name, value in wanted.items()))
    config = _Config((*grid, 1, 1)[:3], (num_threads, 1, 1), shared_bytes, stream or None, attributes, len(attributes))
    error = driver().cuLaunchKernelEx(ctypes.byref(config), ctypes.c_void_p(function), pointers, None)
    if error:
        raise RuntimeError(f"cuLaunchKernelEx fails with CUDA driver error {error}")


def max_active_clusters(function: int, cluster: int, num_threads: int, shared_bytes: int) -> int:
    """How many clusters of so many blocks the current context's device runs at the same time.

    Raises:
        RuntimeError: the driver refuses; the message has its error number.
    """
    attribute = _Attribute(CLUSTER_DIMENSION, b"", (cluster, 1, 1))
    config = _Config((cluster, 1, 1), (num_threads, 1, 1), shared_bytes, None, ctypes.pointer(attribute), 1)
    number = ctypes.c_int()
    error = driver().cuOccupancyMaxActiveClusters(ctypes.byref(number), ctypes.c_void_p(function), ctypes.byref(config))
    if error:
        raise RuntimeError(f"cuOccupancyMaxActiveClusters fails with CUDA driver error {error}")
    return number.value
