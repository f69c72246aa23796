"""Checks of the attention kernel's arguments, all before a launch; errors name the argument."""

from dataclasses import dataclass

import torch

from cuda_kernels.compile import HEAD_DIMS, MAX_GROUP_SIZE, MAX_QUERIES
from cuda_kernels.device import DTYPES

MAX_BATCH = 256
MAX_CAPACITY = 262_144
MAX_KV_HEADS = 65_535


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """The shapes that an instance of `SpanAttention` serves.

    Attributes:
        batch: sequences, 1 to 256.
        num_heads: query heads; at most 16 per key/value head.
        num_kv_heads: key/value heads.
        head_dim: 64, 96 or 128.
        max_spans: most intervals of one sequence, 1 to 262,144.
        dtype: torch.bfloat16 or torch.float16.
        num_queries: consecutive tokens of a sequence that attend at the same time, 1 to 16.

    Raises:
        ValueError: a number that the kernels cannot serve; the message names it.
    """

    batch: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_spans: int
    dtype: torch.dtype = torch.bfloat16
    num_queries: int = 1

    def __post_init__(self) -> None:
        for name in ("batch", "num_heads", "num_kv_heads", "head_dim", "max_spans", "num_queries"):
            check_int(name, getattr(self, name))
        self._check_heads()
        if not 1 <= self.batch <= MAX_BATCH:
            raise ValueError(f"batch is 1 to {MAX_BATCH}, not {self.batch}")
        if not 1 <= self.num_queries <= MAX_QUERIES:
            raise ValueError(f"num_queries is 1 to {MAX_QUERIES}, not {self.num_queries}")
        # A row has no more intervals than tokens.
        if not 1 <= self.max_spans <= MAX_CAPACITY:
            raise ValueError(f"max_spans is 1 to {MAX_CAPACITY}, not {self.max_spans}")
        if not isinstance(self.dtype, torch.dtype) or self.dtype not in DTYPES:
            raise ValueError(f"dtype is torch.bfloat16 or torch.float16, not {self.dtype!r}")

    def _check_heads(self) -> None:
        if self.num_kv_heads < 1 or self.num_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) is no multiple of num_kv_heads ({self.num_kv_heads})")
        if self.group_size > MAX_GROUP_SIZE:
            raise ValueError(f"num_heads: at most {MAX_GROUP_SIZE} per key/value head, not {self.group_size}")
        if self.num_kv_heads > MAX_KV_HEADS:
            raise ValueError(f"num_kv_heads is at most {MAX_KV_HEADS}, not {self.num_kv_heads}")
        if self.head_dim not in HEAD_DIMS:
            raise ValueError(f"head_dim is one of {', '.join(map(str, HEAD_DIMS))}, not {self.head_dim}")

    @property
    def group_size(self) -> int:
        """Query heads per key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def queries(self) -> tuple[int, ...]:
        """Shape of queries and outputs: `[batch, num_heads, head_dim]`, or with several queries per sequence
        `[batch, num_queries, num_heads, head_dim]`."""
        several = (self.num_queries,) if self.num_queries > 1 else ()
        return self.batch, *several, self.num_heads, self.head_dim

    def cache(self, capacity: int) -> tuple[int, int, int, int]:
        """Shape of keys and values."""
        return self.batch, self.num_kv_heads, capacity, self.head_dim


def check_int(name: str, number: int) -> None:
    """Raise a ValueError that names an argument which is no int; a bool is not one either."""
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"{name} is an int, not {number!r}")


def queries_per_row(name: str, num_tokens: int, batch: int) -> int:
    """How many tokens each of `batch` rows has, one behind the other; raise a ValueError that names the argument if
    they are not equally many."""
    if not 1 <= batch <= num_tokens or num_tokens % batch:
        raise ValueError(f"{name}: {num_tokens} tokens are no multiple of {batch} rows")
    return num_tokens // batch


def check_capacity(batch: int, num_kv_heads: int, capacity: int) -> None:
    """Raise a ValueError if no plan can be made for a cache of so many tokens per row."""
    check_int("capacity", capacity)
    if not 1 <= capacity <= MAX_CAPACITY:
        raise ValueError(f"capacity is 1 to {MAX_CAPACITY}, not {capacity}")
    # The work space (schedule.cuh) is counted in 31 bits; 32 tokens are room for rounding up to tiles.
    if batch * num_kv_heads * (capacity + 32) >= 2**31:
        raise ValueError(f"capacity: {batch} x {num_kv_heads} x {capacity} are too many tokens for one plan")


def check_tensor(
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    contiguous: bool = False,
) -> None:
    """Raise a ValueError that names the tensor and what is wrong with it.

    Tensors of 16-bit floats are read in vectors of 16 bytes: their strides and address have to allow that.
    """
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{name} is a tensor, not {type(tensor).__name__}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, and the kernels run on {device}")
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}, and has to be {dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, and has to have {shape}")
    if contiguous:
        # Pairs of int32 are read as one.
        if not tensor.is_contiguous() or tensor.data_ptr() % 8:
            raise ValueError(f"{name} is not contiguous from an address that is a multiple of 8 bytes")
        return
    if tensor.stride(-1) != 1:
        raise ValueError(f"{name}: the last dimension is not contiguous")
    outer = [step for size, step in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True) if size > 1]
    if any(step % 8 for step in outer) or tensor.data_ptr() % 16:
        raise ValueError(
            f"{name}: strides are multiples of 8 elements and the start of 16 bytes; strides: {tensor.stride()}"
        )


def check_no_overlap(name: str, tensor: torch.Tensor) -> None:
    """Raise a ValueError if two indices may share an address: every stride has to exceed what smaller strides span.

    Some interleaved layouts without overlap are refused, too.
    """
    spanned = 1
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and step < spanned:
            raise ValueError(f"{name}: rows or heads lie on each other; strides: {tensor.stride()}")
        spanned += step * (size - 1)
