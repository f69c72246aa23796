"""Host memory in large pages, for weights that every step reads from end to end.

A processor fetches ahead within a page, and keeps the addresses of a few thousand pages. 960 x 576 codes of 8 bits, not
in its cache, take one thread of an Intel Xeon with AMX 93 us in pages of 4 kB, and 72 us in pages of 2 MB.
"""

import contextlib
import mmap

import torch

BLOCK_BYTES = 2**25
"""Asked for at a time; of a block, only the pages that are used take memory."""
LINE_BYTES = 64


class HugePages:
    """Tensors of bytes one behind the other, in blocks of memory that live as long as any tensor in them.

    Where the system has no large pages to give, they lie in small ones.
    """

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.int8)

    def empty(self, num_out: int, depth: int) -> torch.Tensor:
        """An int8 tensor `[num_out, depth]`, that begins at a line of the cache; its values are whatever is there."""
        size = -(-num_out * depth // LINE_BYTES) * LINE_BYTES
        if len(self._free) < size:
            self._free = _block(max(size, BLOCK_BYTES))
        mine, self._free = self._free[:size], self._free[size:]
        return mine[: num_out * depth].view(num_out, depth)


def _block(num_bytes: int) -> torch.Tensor:
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return torch.empty(num_bytes, dtype=torch.int8)
    block = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=torch.int8)
