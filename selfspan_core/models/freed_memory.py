"""Memory that loading has freed goes back to the system.

Weights are a megabyte or two each, and so are the temporary tensors between them. glibc keeps what is freed of that
size for later: after two models of 135 million weights a fifth of a process's memory is such holes, and no later
allocation fits them.
"""

import ctypes
import sys


def give_back_freed_memory() -> None:
    """Let the C library return free pages to the system; nothing happens where it cannot (no Linux, no glibc)."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
