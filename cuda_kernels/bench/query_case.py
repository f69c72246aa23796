"""Time of several queries' attention in one case: by the kernel and by its peers, over the same inputs."""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from cuda_kernels.attention import SpanAttention
from cuda_kernels.bench.benchmark import microseconds
from cuda_kernels.bench.query_tables import DENSITY, MAX_SPANS, make_table
from cuda_kernels.bench.shapes import Shape, num_sets
from cuda_kernels.checks import MAX_BATCH, AttentionShape

# Of the greatest exact value: weights and results are rounded to bfloat16.
TOLERANCE = 0.02
Call = Callable[[], torch.Tensor]


class Case:
    """One case's inputs, and the time of every implementation on them.

    Args:
        shape: heads, rows and context.
        pattern: see `make_table`.
        num_queries: of every row.
        seed: of values and tables.
        replays: per figure.
        device: where the inputs are.
    """

    def __init__(
        self, shape: Shape, pattern: str, num_queries: int, seed: int, replays: int, device: str = "cuda"
    ) -> None:
        self.shape, self.num_queries, self._replays, self._device = shape, num_queries, replays, device
        generator, of_tables = torch.Generator(device).manual_seed(seed), torch.Generator().manual_seed(seed)
        make = lambda *size: torch.randn(  # noqa: E731
            *size, shape.head_dim, generator=generator, device=device, dtype=torch.bfloat16
        )
        sets = range(num_sets(shape, 1.0 if pattern == "dense" else DENSITY))
        self.tables = [make_table(pattern, shape, num_queries, of_tables) for _ in sets]
        self._queries = [make(shape.batch, num_queries, shape.num_heads) for _ in sets]
        # Head by head: so all rows together are one long row, of which `as_rows` sees parts.
        self._caches = [make(2, shape.num_kv_heads, shape.batch * shape.context) for _ in sets]

    @property
    def num_bytes(self) -> float:
        """That one call has to read and write, in the mean."""
        tokens = sum(table.num_read() for table in self.tables) / len(self.tables)
        return self.shape.cache_bytes(tokens) + self.num_queries * self.shape.vector_bytes

    def _cache(self, number: int) -> tuple[torch.Tensor, ...]:
        """Keys and values of one set, `[B, Hkv, context, D]`."""
        return tuple(x.unflatten(1, (self.shape.batch, -1)).transpose(0, 1) for x in self._caches[number])

    def ours(self, with_plan: bool = False) -> float:
        """Time of the kernel with all queries of a row at once; of one query per row, as it is without this."""
        calls = []
        for number, table in enumerate(self.tables):
            query, several = self._queries[number], (table.masks, table.positions)
            given = (table.intervals, table.counts)
            if self.num_queries == 1:
                query, several, given = query[:, 0], (), table.as_rows(0)
            calls.append(self._kernel(query, self._cache(number), given, several, with_plan))
        return self._time(calls)

    def as_rows(self) -> float:
        """Time of the one-query kernel with a row for every query."""
        calls = []
        for number, table in enumerate(self.tables):
            intervals, counts = table.as_rows(self.shape.context)
            parts = []
            for first in range(0, len(counts), MAX_BATCH):
                rows = slice(first, first + MAX_BATCH)
                query = self._queries[number].flatten(0, 1)[rows]
                cache = tuple(x.expand(len(query), -1, -1, -1) for x in self._caches[number])
                parts.append(self._kernel(query, cache, (intervals[rows], counts[rows]), (), False))
            calls.append(lambda parts=parts: [part() for part in parts])
        return self._time(calls)

    def sdpa(self, backend: SDPBackend) -> float:
        """Time of PyTorch's attention with a causal mask that ends with the context."""
        size = (self.num_queries, self.shape.context)
        mask = None
        if self.num_queries > 1 and backend == SDPBackend.FLASH_ATTENTION:
            mask = causal_lower_right(*size)
        elif self.num_queries > 1:
            mask = torch.ones(size, dtype=torch.bool, device=self._device).tril(size[1] - size[0])

        def call(number: int) -> torch.Tensor:
            query, grouped = self._queries[number].transpose(1, 2), self.shape.num_heads != self.shape.num_kv_heads
            with sdpa_kernel(backend):
                out = scaled_dot_product_attention(query, *self._cache(number), attn_mask=mask, enable_gqa=grouped)
            return out.transpose(1, 2)

        return self._time([partial(call, number) for number in range(len(self.tables))])

    def _kernel(self, query: torch.Tensor, cache: tuple, given: tuple, several: tuple, with_plan: bool) -> Call:
        """A call of an instance of its own, which has its plan or makes it each time."""
        shape = self.shape
        heads = {"num_heads": shape.num_heads, "num_kv_heads": shape.num_kv_heads, "head_dim": shape.head_dim}
        num_queries = query.shape[1] if several else 1
        kernel = SpanAttention(
            AttentionShape(batch=len(query), max_spans=MAX_SPANS, num_queries=num_queries, **heads), device=self._device
        )
        given, several = (tuple(x.to(self._device) for x in one) for one in (given, several))
        out = torch.empty_like(query)

        def call(plan: bool) -> torch.Tensor:
            if plan:
                kernel.plan(*given, cache[0].shape[2], *several)
            return kernel(query, *cache, out=out)

        call(True)
        return partial(call, with_plan)

    def _time(self, calls: list) -> float:
        out = calls[0]()
        self.check(torch.cat(out) if isinstance(out, list) else out)
        return microseconds(calls, self._replays)

    def check(self, out: torch.Tensor) -> None:
        """Compare the first set's first and last row with float64; out: queries apart or as rows.

        Raises:
            AssertionError: it is wrong.
        """
        out = out.reshape(self._queries[0].shape)
        for row in (0, self.shape.batch - 1):
            seen = self.tables[0].seen(row).to(self._device)
            keys, values = (x[row].double() for x in self._cache(0))
            query = self._queries[0][row].double().unflatten(1, (self.shape.num_kv_heads, -1))
            scores = torch.einsum("qhgd,htd->hgqt", query, keys) * self.shape.head_dim**-0.5
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            expected = torch.einsum("hgqt,htd->qhgd", weights, values).flatten(1, 2)
            error = ((out[row].double() - expected).abs().max() / expected.abs().max()).item()
            if not error < TOLERANCE:
                raise AssertionError(f"row {row} is off by {error} of the greatest value")
