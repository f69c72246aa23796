"""Random problems for the attention kernel, and what it has to answer, by PyTorch in float64."""

import random

import pytest
import torch
import torch.nn.functional as F

from cuda_kernels.compile import KernelConfig
from tests.support.kernel_on_cpu import COMPILER, Problem

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++ to compile the kernels for the CPU")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BF16, FP16 = torch.bfloat16, torch.float16
CONFIGS = [
    KernelConfig(128, 1, True, 8),
    KernelConfig(128, 4, True, 4),
    KernelConfig(64, 7, False, 4),
    KernelConfig(96, 3, True, 2),
    KernelConfig(128, 16, False, 2),
    KernelConfig(64, 1, True, 8),
]


def make_problem(seed, rows, config, num_kv_heads, capacity, scale=0.1) -> Problem:
    """Random queries and cache; NaN wherever no interval of the row reaches."""
    generator = torch.Generator().manual_seed(seed)
    dtype = BF16 if config.is_bf16 else FP16
    make = lambda *shape: torch.randn(*shape, config.head_dim, generator=generator).to(dtype)  # noqa: E731
    batch = len(rows)
    query = make(batch, num_kv_heads * config.group_size)
    keys, values = make(batch, num_kv_heads, capacity), make(batch, num_kv_heads, capacity)
    for row, spans in enumerate(rows):
        hidden = torch.ones(capacity, dtype=torch.bool)
        for start, end in spans:
            hidden[start:end] = False
        keys[row, :, hidden] = float("nan")
        values[row, :, hidden] = float("nan")
    return Problem(query, keys, values, rows, scale)


def exact(problem: Problem, dtype=torch.float64):
    """What the kernel computes, `[B, H, D]` and log-sum-exp, in another precision by PyTorch's own operations."""
    query, keys, values = problem.tensors
    batch, num_heads, head_dim = query.shape
    group = num_heads // keys.shape[1]
    out = torch.zeros(batch, num_heads, head_dim, dtype=dtype)
    lse = torch.full((batch, num_heads), -torch.inf, dtype=torch.float64)
    for row, spans in enumerate(problem.rows):
        if not spans:
            continue
        positions = torch.cat([torch.arange(start, end) for start, end in spans])
        k = keys[row, :, positions].repeat_interleave(group, 0)
        v = values[row, :, positions].repeat_interleave(group, 0)
        q = query[row, :, None]
        out[row] = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype), scale=problem.scale)[:, 0]
        lse[row] = torch.logsumexp((k.double() @ q.double().transpose(1, 2))[..., 0] * problem.scale, 1)
    return out, lse


def assert_close(out, lse, problem: Problem, exact=exact):
    """Error against float64 at most twice that of PyTorch's attention in the same precision, plus rounding."""
    expected, expected_lse = exact(problem)
    dtype = problem.query.dtype
    rounded, _ = exact(problem, dtype)
    allowed = 2 * (rounded.double() - expected).abs().max() + torch.finfo(dtype).eps
    assert not out.isnan().any()
    assert (out.double() - expected).abs().max() <= allowed
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-4, rtol=1e-5)


def random_rows(seed, batch, capacity, max_spans):
    """Interval lists: some dense, some empty, the others at random offsets, touching ones included."""
    generator = random.Random(seed)
    rows = []
    for _ in range(batch):
        kind = generator.random()
        if kind < 0.15:
            rows.append([])
        elif kind < 0.3:
            rows.append([(0, generator.randint(1, capacity))])
        else:
            count = generator.randint(1, min(max_spans, (capacity + 1) // 2))
            edges = sorted(generator.sample(range(capacity + 1), 2 * count))
            spans = list(zip(edges[::2], edges[1::2], strict=True))
            if generator.random() < 0.3 and len(spans) < max_spans:  # cut one in two
                start, end = spans[-1]
                if end - start > 1:
                    spans[-1:] = [(start, start + 1), (start + 1, end)]
            rows.append(spans)
    return rows
