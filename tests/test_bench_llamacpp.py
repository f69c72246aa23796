"""The benchmark beside llama.cpp, tiny: what it compares, what it writes, and when it measures nothing."""

import importlib
import json
import sys
from contextlib import closing
from pathlib import Path

import pytest

from selfspan_core import bench_llamacpp
from selfspan_core.bench_llamacpp import Child
from selfspan_core.bench_systems import LLAMACPP, SELFSPAN, SYSTEMS
from tests.support import fake_llamacpp
from tests.support.paths import ROOT
from tests.support.tiny_gguf import tiny_model, write
from training.reports import llamacpp


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a package that looks like llama.cpp's where this process and its children find it; returns a tiny file."""

    def fake(num_remembered: int = 0) -> Path:
        fake_llamacpp.write(tmp_path, num_remembered)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
        monkeypatch.setenv("SELFSPAN_CACHE", str(tmp_path / "cache"))
        return write(tmp_path / "tiny.gguf", tiny_model())

    return fake


def test_a_tiny_run_writes_its_figures(fake, tmp_path, monkeypatch):
    """Would catch a token's time over one token too many, peaks of the wrong process, a file without its origin, and a
    report that cannot be made of it or hides what llama.cpp was compiled for."""
    monkeypatch.setattr(bench_llamacpp, "read_bandwidth", lambda: 1e10)
    result = tmp_path / "result.json"
    argv = ["bench", "--model", str(fake()), "--contexts", "20", "90", "--tokens", "4", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", [*argv, "--loads", "1", "--threads", "1", "--output", str(result)])
    bench_llamacpp.main()
    written = json.loads(result.read_text())
    assert {"commit", "dirty", "command", "machine", "versions", "threads", "load_average_at_start"} <= set(written)
    assert list(written["systems"]) == list(SYSTEMS)
    theirs, mine = written["systems"][LLAMACPP], written["systems"][SELFSPAN]
    assert theirs["instructions"] == "CPU : AVX2 = 1 |"
    for row, size in zip(theirs["contexts"], (20, 90), strict=True):
        assert (row["context"], row["ms_per_token"], row["tokens_per_s"]) == (size, 10, 100)
        assert row["prompt_tokens_per_s"] == 10 * size and row["tokens_over_llamacpp"] == 1
        assert row["tokens_alike"] == row["tokens_written"] == 4
    for row in mine["contexts"]:
        assert row["tokens_over_llamacpp"] == pytest.approx(row["tokens_per_s"] / 100, rel=0.01)
        assert 0 < row["floor_ms"] < row["ms_per_token"] and row["tokens_alike"] <= row["tokens_written"]
    assert theirs["kv_bytes_per_position"] in (mine["kv_bytes_per_position"], mine["kv_bytes_per_position"] // 2)
    assert 0 < theirs["peak_mb"] < mine["peak_mb_loaded"] <= mine["peak_mb"]
    loading = mine["loading"]
    assert loading["import_s"] + loading["load_s"] < loading["start_s"]
    monkeypatch.setattr(llamacpp, "read", lambda path: written)
    report = llamacpp.llamacpp()
    assert "uses AVX2;" in report and "| llama.cpp | 90 | 900 | 100.0 | 1.00x |" in report
    assert report.count("| selfspan, plain floats |") == 3


def test_a_remembered_prompt_is_refused(fake):
    """Would catch the rate of a prompt of which llama.cpp computed a part only."""
    file = fake(num_remembered=1)
    asked = {"--model": "any", "--file": str(file), "--threads": "1", "--context": "32"}
    refused = pytest.raises(RuntimeError, match="computed 19 tokens of a prompt of 20")
    with closing(Child(LLAMACPP, [word for pair in asked.items() for word in pair])) as child, refused:
        child.answer(range(20), 4)


def test_nothing_is_measured_without_the_package(tmp_path, monkeypatch, capsys):
    """Would catch a traceback, or a results file without llama.cpp in it."""
    monkeypatch.setattr(bench_llamacpp, "PACKAGE", "a_package_that_is_not_there")
    result = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["bench", "--output", str(result)])
    bench_llamacpp.main()
    assert capsys.readouterr().err == bench_llamacpp.MISSING + "\n" and not result.exists()


def test_prompts():
    """Would catch prompts that end with the text, and lengths that are not the asked ones."""

    class Letters:
        def encode(self, text):
            return [ord(letter) for letter in text[:100]]

    asked = bench_llamacpp.prompts(Letters(), (30, 250))
    assert [len(asked[size]) for size in (30, 250)] == [30, 250]
    assert asked[250][100:200] == asked[250][:100] and asked[30] == asked[250][:30]


def test_ids_alike():
    """Would catch ids that are compared behind the first that differs."""
    assert bench_llamacpp.num_alike([1, 2, 3, 4], [1, 2, 9, 4]) == 2
    assert bench_llamacpp.num_alike([1, 2], [1, 2, 3]) == 2
