"""The distance of heads in a cache, chosen so that they do not all lie on the same stack of the GPU's memory."""

GRAIN_BYTES = 4096
STACKS = (3, 5)
STEP = 16


def spread_capacity(capacity: int, position_bytes: int) -> int:
    """Positions to store for a capacity: that many or a few more, so that heads do not begin on the same memory stack.

    On an H100 heads that lie a multiple of 5 x 65,536 bytes apart are slow to read: cuDNN's dense attention over 64
    rows of some 750 tokens takes 257 us at a capacity of 2,048, 297 at 1,280 and 322 at 2,560 (head_dim 128, 16 bits;
    docs/log/2026-11-26-memory-stacks.md). Its memory has five stacks, so the likeliest reason is that all heads
    queue for the same stack; this was not investigated. Other GPUs have three or six stacks and were not measured.

    Args:
        position_bytes: bytes of one position of one head.
    """
    stored = -(-capacity // STEP) * STEP
    while any(stored * position_bytes % (stacks * GRAIN_BYTES) == 0 for stacks in STACKS):
        stored += STEP
    return stored
