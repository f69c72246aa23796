"""Tensor maps: descriptors of a tensor (address, size, box) for TMA, the copy engine of Hopper GPUs.

Made by the driver (cuTensorMapEncodeTiled, CUDA driver API 13.0, "Tensor Map Object Management"), passed to a kernel by
value.
"""

import ctypes
import functools

import torch

from cuda_kernels.driver import driver

DATA_TYPES = {torch.float16: 6, torch.bfloat16: 9}
"""CUtensorMapDataType in cuda.h."""
INTERLEAVE_NONE, SWIZZLE_128B, L2_PROMOTION_256B, ZEROS_BEYOND = 0, 3, 3, 0
"""CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill."""
MAP_ALIGNMENT = 64


class TensorMap(ctypes.Structure):
    """CUtensorMap: 128 opaque bytes."""

    _fields_ = [("opaque", ctypes.c_uint64 * 16)]


def tensor_map(tensor: torch.Tensor, box: tuple[int, ...]) -> TensorMap:
    """A tensor in boxes whose last dimension is 64 elements, 128 bytes; in shared memory those are swizzled by 16.

    Args:
        tensor: torch.bfloat16 or torch.float16, of two to five dimensions; the last one is contiguous, the strides of
            the others and the beginning are multiples of 16 bytes.
        box: of as many dimensions, each at most 256.

    Raises:
        RuntimeError: the driver refuses; the message has its error number.
    """
    return _map(tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), box)


@functools.lru_cache(maxsize=4096)
def _map(
    pointer: int, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]
) -> TensorMap:
    dimensions = len(shape)
    sizes = (ctypes.c_uint64 * dimensions)(*reversed(shape))
    # In bytes; the driver takes no stride for the last dimension.
    steps = (ctypes.c_uint64 * (dimensions - 1))(*(2 * stride for stride in reversed(strides[:-1])))
    boxes = (ctypes.c_uint32 * dimensions)(*reversed(box))
    element_steps = (ctypes.c_uint32 * dimensions)(*(1 for _ in shape))
    room = ctypes.create_string_buffer(ctypes.sizeof(TensorMap) + MAP_ALIGNMENT)
    aligned = -(-ctypes.addressof(room) // MAP_ALIGNMENT) * MAP_ALIGNMENT
    error = driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(aligned),
        ctypes.c_int(DATA_TYPES[dtype]),
        ctypes.c_uint32(dimensions),
        ctypes.c_void_p(pointer),
        sizes,
        steps,
        boxes,
        element_steps,
        ctypes.c_int(INTERLEAVE_NONE),
        ctypes.c_int(SWIZZLE_128B),
        ctypes.c_int(L2_PROMOTION_256B),
        ctypes.c_int(ZEROS_BEYOND),
    )
    if error:
        raise RuntimeError(f"cuTensorMapEncodeTiled fails with CUDA driver error {error} for {shape} in {box}")
    return TensorMap.from_buffer_copy(ctypes.string_at(aligned, ctypes.sizeof(TensorMap)))
