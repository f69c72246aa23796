"""Problems for the attention kernel with several queries per row, and what it has to answer, in float64."""

import random

import torch
import torch.nn.functional as F

from cuda_kernels.compile import KernelConfig
from tests.support.attention_problem import BF16, FP16, random_rows
from tests.support.kernel_on_cpu import Problem

Rows = list[list[tuple[int, int]]]


def seen_by_queries(problem: Problem) -> torch.Tensor:
    """What every query of every row sees, bool `[B, Q, capacity]`."""
    batch, num_queries = problem.query.shape[:2]
    capacity = problem.keys.shape[2]
    seen = torch.zeros(batch, num_queries, capacity, dtype=torch.bool)
    for row, (spans, masks) in enumerate(zip(problem.rows, problem.masks, strict=True)):
        for query in range(num_queries):
            for (start, end), mask in zip(spans, masks, strict=True):
                if mask >> query & 1:
                    seen[row, query, start:end] = True
            seen[row, query, problem.positions[row] + query + 1 :] = False
    return seen


def make_queries(
    seed: int,
    rows: Rows,
    masks: list[list[int]],
    positions: list[int],
    config: KernelConfig,
    num_kv_heads: int,
    capacity: int,
) -> Problem:
    """Random queries and cache for a table; NaN wherever no query of the row sees anything."""
    generator = torch.Generator().manual_seed(seed)
    dtype = BF16 if config.is_bf16 else FP16
    make = lambda *shape: torch.randn(*shape, config.head_dim, generator=generator).to(dtype)  # noqa: E731
    batch = len(rows)
    query = make(batch, config.num_queries, num_kv_heads * config.group_size)
    keys, values = make(batch, num_kv_heads, capacity), make(batch, num_kv_heads, capacity)
    problem = Problem(query, keys, values, rows, 0.1, masks, positions)
    for row, seen in enumerate(seen_by_queries(problem).any(1)):
        keys[row, :, ~seen] = float("nan")
        values[row, :, ~seen] = float("nan")
    return problem


def random_table(
    seed: int, batch: int, capacity: int, max_spans: int, num_queries: int
) -> tuple[Rows, list[list[int]], list[int]]:
    """Intervals, masks and positions. Some rows are empty; in half of the others the queries' own tokens are an
    interval that all of them see; some intervals are seen by none."""
    generator = random.Random(seed)
    rows, masks, positions = random_rows(seed, batch, capacity, max_spans - 1), [], []
    for row, spans in enumerate(rows):
        position = generator.randrange(capacity)
        if spans and generator.random() < 0.5:
            before = [(start, min(end, position)) for start, end in spans if start < position]
            rows[row] = [*before, (position, min(capacity, position + num_queries))]
        masks.append([generator.randrange(2**num_queries) for _ in rows[row]])
        if rows[row] and rows[row][-1][0] == position:
            masks[row][-1] = 2**num_queries - 1
        positions.append(position)
    return rows, masks, positions


def exact_queries(problem: Problem, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel computes, `[B, Q, H, D]` and log-sum-exp `[B, Q, H]`, in another precision by PyTorch."""
    query, keys, values = problem.tensors
    group = query.shape[2] // keys.shape[1]
    out = torch.zeros(query.shape, dtype=dtype)
    lse = torch.full(query.shape[:3], -torch.inf, dtype=torch.float64)
    for row, seen in enumerate(seen_by_queries(problem)):
        read = seen.any(0)
        k = keys[row, :, read].repeat_interleave(group, 0)
        v = values[row, :, read].repeat_interleave(group, 0)
        for one in range(len(seen)):
            if not seen[one].any():
                continue
            mask, q = seen[one, read], query[row, one, :, None]
            out[row, one] = F.scaled_dot_product_attention(
                q.to(dtype), k[:, mask].to(dtype), v[:, mask].to(dtype), scale=problem.scale
            )[:, 0]
            scores = (k[:, mask].double() @ q.double().transpose(1, 2))[..., 0] * problem.scale
            lse[row, one] = torch.logsumexp(scores, 1)
    return out, lse
