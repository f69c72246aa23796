"""The benchmark of several queries per row: its tables, its views of the cache and its figures, without a GPU."""

import json
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend

from cuda_kernels import bench_queries
from cuda_kernels.bench import query_case
from cuda_kernels.bench.query_case import Case
from cuda_kernels.bench.query_tables import MAX_SPANS, PATTERNS, make_table
from cuda_kernels.bench.shapes import Shape

SHAPE = Shape(4, 2, 3, 512, head_dim=64)


class OnCpu:
    """Stands for `SpanAttention`: the same answers by PyTorch, wrong by `error`."""

    error = 0.0

    def __init__(self, shape, device):
        self.shape = shape

    def plan(self, intervals, counts, capacity, masks=None, positions=None):
        batch, num_queries = self.shape.batch, self.shape.num_queries
        assert intervals.shape == (batch, MAX_SPANS, 2) and (num_queries == 1) == (masks is None)
        self.seen = torch.zeros(batch, num_queries, capacity, dtype=torch.bool)
        for row in range(batch):
            for i in range(int(counts[row])):
                start, end = intervals[row, i].tolist()
                for query in range(num_queries):
                    behind = end if masks is None else min(end, int(positions[row]) + query + 1)
                    if masks is None or masks[row, i] >> query & 1:
                        self.seen[row, query, start:behind] = True

    def __call__(self, query, keys, values, out):
        several = query if query.dim() == 4 else query[:, None]
        found = torch.nn.functional.scaled_dot_product_attention(
            several.transpose(1, 2).double(),
            keys.double(),
            values.double(),
            attn_mask=self.seen[:, None],
            enable_gqa=True,
        )
        return out.copy_(found.transpose(1, 2).reshape(out.shape) + self.error)


def on_cpu(monkeypatch, pattern: str, num_queries: int, shape: Shape = SHAPE) -> Case:
    monkeypatch.setattr(query_case, "SpanAttention", OnCpu)
    monkeypatch.setattr(query_case, "microseconds", lambda calls, replays: 10.0 * len([call() for call in calls]))
    monkeypatch.setattr(query_case, "num_sets", lambda *_: 2)
    return Case(shape, pattern, num_queries, 0, 20, device="cpu")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_tables_keep_what_they_say(pattern):
    """Would catch a case that reads more or less than it says, or a query without its own token or with a later one."""
    table = make_table(pattern, SHAPE, 5, torch.Generator().manual_seed(1))
    starts, ends = (table.intervals[:, : table.counts[0], i] for i in (0, 1))
    assert (starts < ends).all() and (starts[:, 1:] >= ends[:, :-1]).all() and ends.max() == SHAPE.context
    seen = torch.stack([table.seen(row) for row in range(SHAPE.batch)])
    for query in range(5):
        assert seen[:, query, SHAPE.context - 5 + query].all() and not seen[:, query, SHAPE.context - 4 + query :].any()
    assert table.num_read() == seen.any(1).sum()
    share = seen.double().mean().item()
    expected = {"dense": 1.0, "shared": 0.25, "mixed": 0.125}[pattern]
    assert share == pytest.approx(expected, abs=0.03)
    assert table.num_read() / seen[:, 0].numel() == pytest.approx(1.0 if pattern == "dense" else 0.25, abs=0.03)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("num_queries", [1, 4])
def test_every_way_attends_to_the_same(monkeypatch, pattern, num_queries):
    """Would catch a peer that is timed over other tokens or another part of the cache: every result is compared."""
    monkeypatch.setattr(query_case, "MAX_BATCH", 5)  # several launches of rows
    case = on_cpu(monkeypatch, pattern, num_queries)
    line = bench_queries.measure(case, pattern, 2.0)
    num_tokens = sum(table.num_read() for table in case.tables) / 2
    num_bytes = num_tokens * 2 * 2 * 2 * 64 + num_queries * 2 * 2 * 3 * 4 * 64
    assert line["bytes"] == num_bytes
    for name in ("ours", "with_plan", "as_rows"):
        assert line[name] == {"us": 20.0, "share_of_limit": pytest.approx(num_bytes / 20.0 / 1e6 / 2.0)}
    if pattern == "dense":
        monkeypatch.setattr(query_case, "sdpa_kernel", lambda backend: torch.no_grad())
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH):
            assert case.sdpa(backend) == 20.0


def test_a_wrong_result_is_recorded(monkeypatch):
    """Would catch a wrong kernel's time among the results, or one failure that ends the benchmark."""
    case = on_cpu(monkeypatch, "shared", 2)
    monkeypatch.setattr(OnCpu, "error", 0.02)
    line = bench_queries.measure(case, "shared", 2.0)
    assert line["ours"]["unavailable"].startswith("AssertionError: row 0 is off by")
    assert "ours: AssertionError" in bench_queries.text_of(line)


def test_ratios_are_to_one_query_of_the_same_pattern():
    """Would catch a ratio to another pattern, or to a peer."""
    lines = [
        {"pattern": pattern, "num_queries": n, "ours": {"us": us}, "flash": {"us": 99.0}, "cudnn": {"unavailable": "x"}}
        for pattern, n, us in (("dense", 1, 10.0), ("mixed", 1, 4.0), ("mixed", 8, 5.0))
    ]
    bench_queries.compare_with_one_query(lines)
    assert lines[2]["ours"]["times_one_query"] == 1.25 and lines[0]["flash"]["times_one_query"] == 9.9
    assert lines[1]["cudnn"] == {"unavailable": "x"}


def test_the_whole_run(monkeypatch, tmp_path, capsys):
    """Would catch a benchmark that does not reach its end, or passes in silence over a wrong kernel."""
    out = tmp_path / "queries.json"
    monkeypatch.setattr(bench_queries, "begin_benchmark", lambda kind, path: ({"commit": kind}, path, 3.0))
    monkeypatch.setattr(
        bench_queries, "Case", lambda shape, pattern, n, *_: on_cpu(monkeypatch, pattern, n, Shape(2, 2, 1, 512, 64))
    )
    monkeypatch.setattr(bench_queries, "QUICK_QUERIES", (1, 2))
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--out", str(out)])
    bench_queries.main()
    found = json.loads(out.read_text())
    assert [shape["shape"]["num_kv_heads"] for shape in found["shapes"]] == [8, 8] and found["commit"] == "queries"
    for shape in found["shapes"]:
        assert [(x["pattern"], x["num_queries"]) for x in shape["measured"]] == [
            (p, n) for p in PATTERNS for n in (1, 2)
        ]
        assert all(line["ours"]["times_one_query"] == 1.0 for line in shape["measured"])
    monkeypatch.setattr(OnCpu, "error", 1.0)
    with pytest.raises(SystemExit, match="wrong or failed"):
        bench_queries.main()
    assert "queries: ours" in capsys.readouterr().out
