"""The benchmark of smaller weights: its floors are of the bytes that are stored; the table says what a cell holds."""

import json

import pytest
import torch.nn.functional as F

from selfspan_core.models.device_matrices import Int8DeviceStore
from training import bench_weights
from training.reports import weights

REHEARSAL = ["--device", "cpu", "--shapes", "tiny", "--cells", "256x2"]


def product(x, codes, scales, bias):
    """What the kernel computes."""
    return F.linear(x, codes.float() * scales[:, None], bias)


def test_bytes_are_those_of_the_codes(tmp_path, monkeypatch):
    """Would catch a floor of 16-bit weights in a cell of 8, by which reading less would pay no more than before."""
    stores = {"bfloat16": None, "int8": Int8DeviceStore(product)}
    monkeypatch.setattr(bench_weights, "store_of", lambda kind, device: stores[kind])
    out = tmp_path / "weights.json"
    bench_weights.main([*REHEARSAL, "--kinds", "bfloat16", "int8", "--out", str(out)])
    floats, codes = json.loads(out.read_text())["shapes"]["tiny"]["steps"]
    assert 3.8 < floats["gigabytes"] / codes["gigabytes"] < 4.1
    said = [cell["lanes"]["0.1"]["speedup_predicted_by_bytes"] for cell in (floats, codes)]
    assert said[1] > said[0] > 1


def test_many_rows_of_codes_are_left_out(tmp_path, monkeypatch):
    """Would catch products of bfloat16 that are told as those of int8."""
    monkeypatch.setattr(bench_weights, "store_of", lambda kind, device: Int8DeviceStore(product))
    monkeypatch.setattr(bench_weights, "long_cell", lambda *arguments: pytest.fail("measured"))
    bench_weights.main([*REHEARSAL[:-1], "256x17", "--kinds", "int8", "--out", str(tmp_path / "weights.json")])


def test_it_says_that_it_needs_a_gpu(capsys):
    """Would catch hours of a large model on a CPU."""
    with pytest.raises(SystemExit):
        bench_weights.main(["--device", "cpu"])
    assert "only rehearses" in capsys.readouterr().err


def test_the_table(monkeypatch):
    """Would catch kinds that are compared with another cell's bfloat16."""

    def cell(kind, batch, dense):
        lanes = {name: {"ms_per_step": dense / by, "speedup": by, "speedup_predicted_by_bytes": by + 1} for name, by in
                 (("dense", 1.0), ("0.1", 2.0), ("0.25", 1.5))}  # fmt: skip
        return {"weights": kind, "gigabytes": 6.6, "batch": batch, "context": 8192, "lanes": lanes}

    cells = [cell("bfloat16", 1, 4.0), cell("bfloat16", 16, 8.0), cell("fp8", 1, 2.0), cell("int8", 4, 2.0)]
    head = {"commit": "c" * 40, "dirty": False, "machine": {"gpu": "G"}, "command": "x"}
    results = {**head, "shapes": {"7B": {"steps": [*cells, {"unavailable": "too large"}]}}}
    monkeypatch.setattr(weights, "read_all", lambda name: {"assets/results/weights_g.json": results})
    told = weights.findings_weights()
    assert "| 7B, fp8, 1 x 8192 | 6.6 | 2.00 | 1.00 | 2.00x | 3.00x | 1.50x | 2.00x |" in told
    assert "| 7B, int8, 4 x 8192 | 6.6 | 2.00 | 1.00 | 2.00x | 3.00x | 1.50x | – |" in told
