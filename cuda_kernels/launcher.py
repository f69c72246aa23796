"""Launch kernels on torch's current stream, and pass tensors to them."""

import warnings
from contextlib import AbstractContextManager

import numpy as np
import torch

from cuda_kernels.compile import on_device
from cuda_kernels.driver import launch_overlapping


class Launcher:
    """Launches kernels on torch's current stream of one device.

    From sm_90 on a kernel begins while the one before it still runs; all kernels of this package wait on the device for
    the results of that one.

    Args:
        device: a CUDA device with its index.
        carveout_percent: see `launch_overlapping`; only from sm_90 on.
    """

    def __init__(self, device: torch.device, carveout_percent: int | None = None) -> None:
        self._device, self._carveout_percent = device, carveout_percent
        self._overlap = torch.cuda.get_device_capability(device) >= (9, 0)
        self._streams: dict[int, AbstractContextManager] = {}

    def __call__(
        self,
        kernel,
        num_blocks: int | tuple[int, int],
        num_threads: int,
        arguments: tuple,
        shared_bytes: int = 0,
    ) -> None:
        """Launch one kernel (`cupy.RawKernel`).

        Args:
            kernel: as `compile.load` returns it.
            num_blocks: the grid, of one or two dimensions.
            num_threads: of a block.
            arguments: NumPy scalars of the parameters' types, or ctypes structures.
            shared_bytes: dynamic shared memory of a block.
        """
        pointer = torch.cuda.current_stream(self._device).cuda_stream
        grid = (num_blocks,) if isinstance(num_blocks, int) else num_blocks
        if self._overlap:
            with on_device(self._device.index):
                launch_overlapping(
                    kernel.kernel.ptr, pointer, grid, num_threads, arguments, shared_bytes, self._carveout_percent
                )
            return
        if pointer not in self._streams:
            self._streams[pointer] = foreign_stream(pointer, self._device)
        with on_device(self._device.index), self._streams[pointer]:
            kernel(grid, (num_threads,), arguments, shared_mem=shared_bytes)


def foreign_stream(pointer: int, device: torch.device):
    """torch's stream for CuPy, which neither owns nor destroys it."""
    import cupy

    with warnings.catch_warnings():
        # Its successor, Stream.from_external, would destroy the stream with the object.
        warnings.simplefilter("ignore", DeprecationWarning)
        return cupy.cuda.ExternalStream(pointer, device.index)


def pointer(tensor: torch.Tensor | None) -> np.uint64:
    """The address of a tensor's data, as a kernel takes it; None: null."""
    return np.uint64(0 if tensor is None else tensor.data_ptr())


def pointers(*tensors: torch.Tensor | None) -> tuple[np.uint64, ...]:
    """The addresses of several tensors."""
    return tuple(pointer(tensor) for tensor in tensors)


def int32s(*numbers: int) -> tuple[np.int32, ...]:
    """Integers as a kernel takes them."""
    return tuple(np.int32(number) for number in numbers)


def pointer_and_strides(tensor: torch.Tensor) -> tuple[np.uint64 | np.int64, ...]:
    """The address, and the strides in elements of all dimensions but the last."""
    return (pointer(tensor), *(np.int64(step) for step in tensor.stride()[:-1]))
