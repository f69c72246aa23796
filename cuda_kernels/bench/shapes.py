"""Shapes that the attention benchmark measures, and the GPU memory that they need."""

import math
from dataclasses import dataclass

from cuda_kernels.bench import peers
from cuda_kernels.bench.benchmark import READ_STREAM_BYTES
from cuda_kernels.bench.selections import Selection

BYTES_PER_ELEMENT = 2
DENSITIES = (0.05, 0.1, 0.25, 0.5, 0.75)
# A replay reads at least this much at the lowest density: several times the second-level cache (50 MB on Hopper).
MIN_REPLAY_BYTES = 4 * 64e6
MAX_SETS = 128


@dataclass(frozen=True)
class Shape:
    """One decode step's attention."""

    num_heads: int
    num_kv_heads: int
    batch: int
    context: int
    head_dim: int = 128

    @property
    def name(self) -> str:
        """For tables: `32/8, 8 x 4096, d 128`."""
        return f"{self.num_heads}/{self.num_kv_heads}, {self.batch} x {self.context}, d {self.head_dim}"

    def cache_bytes(self, num_tokens: float) -> float:
        """Keys and values of so many tokens, over all rows together."""
        return 2 * BYTES_PER_ELEMENT * self.num_kv_heads * self.head_dim * num_tokens

    @property
    def dense_bytes(self) -> float:
        """Keys and values of the whole context."""
        return self.cache_bytes(self.batch * self.context)

    @property
    def vector_bytes(self) -> int:
        """Queries and outputs."""
        return 2 * BYTES_PER_ELEMENT * self.batch * self.num_heads * self.head_dim


SHAPES = (
    *(
        Shape(32, kv, batch, context)
        for kv in (32, 8)
        for batch, context in ((1, 16384), (8, 4096), (32, 2048), (32, 8192))
    ),
    Shape(32, 32, 64, 2048),
    Shape(32, 8, 64, 8192),
    Shape(32, 8, 4, 32768),
    Shape(32, 8, 1, 131072),
    Shape(32, 4, 8, 8192),
    Shape(32, 32, 32, 2048, 64),
    Shape(32, 8, 32, 2048, 64),
)


# FlexAttention is compiled anew for every shape and block size, which takes seconds: a few stand for all.
FLEX_SELECTIONS = ("random 16", "random 128")
FLEX_SHAPES = (Shape(32, 32, 32, 8192), Shape(32, 8, 32, 8192))
# From which context on reading less pays: heads, key/value heads and batch; contexts and shares that are kept.
FAMILIES = ((32, 32, 1), (32, 8, 1), (32, 32, 32), (32, 8, 32))
CONTEXTS = (512, 1024, 2048, 4096, 8192)
FAMILY_DENSITIES = (0.25, 0.5)
FAMILY_SELECTION = Selection("random", 16)
MAX_FAMILY_SETS = 512


def num_sets(shape: Shape, least_density: float = min(DENSITIES), max_sets: int = MAX_SETS) -> int:
    """How many sets of inputs a shape is measured with: two or more, so that no cache holds what a replay reads."""
    return min(max_sets, max(2, math.ceil(MIN_REPLAY_BYTES / (least_density * shape.dense_bytes))))


def gpu_bytes(shape: Shape) -> float:
    """GPU memory that a shape takes, roughly: all sets, FlashInfer's copies of them in pages, and its workspaces."""
    return num_sets(shape) * (2 * shape.dense_bytes + peers.FLASHINFER_WORKSPACE_BYTES)


def memory_text() -> str:
    """The GPU memory that the shapes need, for --help."""
    lines = [f"  {i:2d}  {shape.name:28s} {gpu_bytes(shape) / 1e9:5.1f} GB" for i, shape in enumerate(SHAPES)]
    return "\n".join(
        [
            "shapes (heads/key-value heads, batch x context, head_dim), and roughly what they take of the GPU's",
            "memory, FlashInfer's pages included (one shape at a time; the read stream before them takes "
            f"{READ_STREAM_BYTES / 1e9:.0f} GB):",
            *lines,
        ]
    )
