"""The attention kernel on a GPU, over the problems that its CPU stand-in gets."""

from dataclasses import replace

import torch

from cuda_kernels.attention import SpanAttention
from cuda_kernels.checks import AttentionShape
from tests.support.kernel_on_cpu import table_of


def on_gpu(config, problem, max_spans, **arguments):
    """A problem on the GPU: the instance, planned, its tensors and what `plan` takes besides the capacity."""
    problem = replace(problem, query=problem.query.cuda(), keys=problem.keys.cuda(), values=problem.values.cuda())
    query, keys = problem.query, problem.keys
    shape = AttentionShape(
        batch=len(problem.rows),
        num_heads=query.shape[-2],
        num_kv_heads=keys.shape[1],
        head_dim=config.head_dim,
        max_spans=max_spans,
        dtype=query.dtype,
        num_queries=config.num_queries,
    )
    attention = SpanAttention(shape, **arguments)
    table = tuple(x.cuda() for x in (*table_of(problem.rows, max_spans), *problem.queries_table(max_spans)))
    attention.plan(*table[:2], keys.shape[2], *table[2:])
    return attention, problem, table


def called(attention, problem):
    """Output and log-sum-exp, both poisoned before; on the CPU."""
    out = torch.full_like(problem.query, float("nan"))
    lse = torch.full(problem.query.shape[:-1], float("nan"), device="cuda")
    attention(*problem.tensors, scale=problem.scale, out=out, lse=lse)
    return out.cpu(), lse.cpu()


def on_cpu(problem):
    """The problem's tensors back on the CPU."""
    query, keys, values = (x.cpu() for x in problem.tensors)
    return replace(problem, query=query, keys=keys, values=values)
