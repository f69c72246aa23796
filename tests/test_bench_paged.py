"""The benchmark of paged caches: its caches, its tables and its figures, without a GPU."""

import json
import sys

import pytest
import torch

from cuda_kernels import bench_paged
from cuda_kernels.bench.selections import ALL, Selection
from cuda_kernels.bench.shapes import Shape
from training.reports import paged

SHAPE = Shape(4, 2, 3, 256, head_dim=64)
SPANS = Selection("spans", 16)


def attended(query, rows, intervals, counts):
    """Attention by PyTorch; rows: keys and values `[Hkv, context, D]` of every row."""
    found = torch.empty_like(query)
    for row, (keys, values) in enumerate(rows):
        seen = torch.zeros(keys.shape[1], dtype=torch.bool)
        for start, end in intervals[row, : int(counts[row])].tolist():
            seen[start:end] = True
        one = query[row][None, :, None].double()
        mask = seen[None, None]
        found[row] = torch.nn.functional.scaled_dot_product_attention(
            one, keys[None].double(), values[None].double(), attn_mask=mask, enable_gqa=True
        )[0, :, 0]
    return found


class OnePiece:
    """Stands for `SpanAttention`."""

    def __init__(self, shape, device):
        self.shape = shape

    def plan(self, intervals, counts, capacity):
        assert intervals.shape == (self.shape.batch, self.shape.max_spans, 2) and capacity == SHAPE.context
        self.given = intervals, counts

    def __call__(self, query, keys, values, out):
        return out.copy_(attended(query, list(zip(keys, values, strict=True)), *self.given))


class Paged(OnePiece):
    """Stands for `PagedAttention`, wrong by `error`."""

    error = 0.0

    def __init__(self, shape, layout, max_pages, device):
        super().__init__(shape, device)
        self.layout, self.max_pages = layout, max_pages

    def plan(self, intervals, counts, table):
        assert table.shape == (self.shape.batch, self.max_pages) and table.unique().numel() == table.numel()
        self.given, self.table = (intervals, counts), table.long()

    def __call__(self, query, keys, values, out):
        assert keys.shape[2] == self.layout.page_size and keys.stride() == values.stride()
        rows = [tuple(x[pages].transpose(0, 1).flatten(1, 2) for x in (keys, values)) for pages in self.table]
        return out.copy_(attended(query, rows, *self.given) + self.error)


@pytest.fixture
def on_cpu(monkeypatch):
    """The benchmark over stand-ins; a call takes 10 microseconds."""
    monkeypatch.setattr(bench_paged, "SpanAttention", OnePiece)
    monkeypatch.setattr(bench_paged, "PagedAttention", Paged)
    monkeypatch.setattr(bench_paged, "microseconds", lambda calls, replays: 10.0 * len([call() for call in calls]))
    monkeypatch.setattr(bench_paged, "num_sets", lambda *_: 2)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


@pytest.mark.parametrize(("selection", "density"), [(ALL, 1.0), (SPANS, 0.25)])
def test_all_caches_hold_what_the_check_expects(on_cpu, selection, density):
    """Would catch pages looked up in the wrong order, and keys taken for values: then the check compares noise."""
    case = bench_paged.PagedCase(SHAPE, selection, density, seed=3, replays=1, device="cpu")
    tokens = SHAPE.batch * SHAPE.context * density
    assert case.num_bytes == pytest.approx(4 * SHAPE.num_kv_heads * 64 * tokens + 4 * SHAPE.batch * 4 * 64, rel=0.02)
    line = bench_paged.measure(case, 2.0)
    assert set(line["caches"]) >= {"one piece", "pages of 16, heads first", "pages of 128, tokens first"}
    for name, one in line["caches"].items():
        assert one["us"] == one["plan_us"] == 20, (name, one)
        assert one["share_of_limit"] == pytest.approx(case.num_bytes / 20 / 1e6 / 2)


def test_a_wrong_kernel_has_no_time(on_cpu, monkeypatch, tmp_path, capsys):
    """Would catch a figure of a kernel that reads other pages."""
    monkeypatch.setattr(Paged, "error", 0.5)
    monkeypatch.setattr(bench_paged, "SHAPES", (SHAPE,))
    monkeypatch.setattr(bench_paged, "SELECTIONS", ((SPANS, 0.25),))
    case = bench_paged.PagedCase
    monkeypatch.setattr(bench_paged, "PagedCase", lambda *given: case(*given, device="cpu"))
    out = tmp_path / "paged.json"
    monkeypatch.setattr(bench_paged, "begin_benchmark", lambda kind, _: ({"commit": "c"}, out, 2.0))
    monkeypatch.setattr(sys, "argv", ["bench_paged"])
    with pytest.raises(SystemExit, match="wrong or failed"):
        bench_paged.main()
    found = json.loads(out.read_text())["shapes"][0]["measured"][0]["caches"]
    assert "us" in found["one piece"] and "off by" in found["pages of 16, heads first"]["unavailable"]


def test_the_report_shows_every_cache():
    """Would catch a column that holds another cache's time."""
    caches = {"one piece": {"us": 10.0, "share_of_limit": 0.9}, "pages of 16, heads first": {"unavailable": "x"}}
    lines = [{"selection": "spans 16", "density": 0.25, "caches": caches}]
    origin = {"commit": "c" * 40, "dirty": False, "machine": {"gpu": "G"}, "command": "x"}
    results = {**origin, "shapes": [{"shape": {"name": "32/8, 1 x 16"}, "measured": lines}]}
    assert "| 32/8, 1 x 16, spans 16, 25 % | 10.0 (90 %) | – |" in paged.paged_on(
        results, "assets/results/paged_g.json"
    )
