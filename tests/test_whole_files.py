"""Results files: whole or not there, and a place where none can be is told before anything is computed."""

import os
import subprocess
import sys

import pytest

from cuda_kernels.bench import whole_file
from selfspan_core import bench_cpu
from tests.support.paths import ROOT
from training import evaluate, summary_curve


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    """Would catch hours of results cut off in the middle by a full disk, and what is left of the attempt."""
    path = tmp_path / "results.json"
    whole_file.write_whole(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        whole_file.write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    whole_file.write_whole(tmp_path / "a" / "b" / "results.json", "ä")
    assert (tmp_path / "a" / "b" / "results.json").read_bytes() == "ä".encode()


def test_what_others_name_is_there_before_them(tmp_path, monkeypatch):
    """Would catch a configuration of the new weights beside the old ones, where a run is killed between two files."""
    beside, folder = tmp_path / "beside", tmp_path / "folder"
    beside.mkdir()
    for name in ("adapter_config.json", "b.safetensors", "a.safetensors"):
        (beside / name).write_text("new")
    moved, replace = [], type(tmp_path).replace
    monkeypatch.setattr(type(tmp_path), "replace", lambda path, to: (moved.append(to.name), replace(path, to))[1])
    whole_file.move_into(beside, folder)
    assert moved == ["a.safetensors", "b.safetensors", "adapter_config.json"] and not beside.exists()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_weights_may_be_read_by_whoever_may_read_other_new_files(tmp_path, umask):
    """Would catch an adapter that nobody but its trainer can load: safetensors gives its files the mode 0600."""
    script = """
import os, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from training.loop.checkpoints import _write_tensors
from training.loop.output import written_into
os.umask(int(sys.argv[2]))
folder = Path(sys.argv[1]) / "adapter"
with written_into(folder) as unfinished:
    save_file({"a": torch.zeros(2)}, unfinished / "a.safetensors")
    (unfinished / "a.json").write_text("{}")
_write_tensors(folder / "b.safetensors", {"a": torch.zeros(2)})
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path), str(umask)], check=True, cwd=ROOT)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "adapter").iterdir()}
    assert modes == dict.fromkeys(("a.json", "a.safetensors", "b.safetensors"), 0o666 & ~umask)


@pytest.mark.parametrize(
    ("main", "arguments", "option"),
    [
        (evaluate.main, [], "--out"),
        (evaluate.main, ["--task", "summarize", "--pairs", "x"], "--out"),
        (evaluate.main, ["--task", "summarize", "--pairs", "x"], "--decode-only"),
        (summary_curve.main, ["a", "b", "--data", "x", "--pairs", "x"], "--out"),
        (bench_cpu.main, [], "--output"),
    ],
)
def test_results_that_could_not_be_written_are_not_computed(tmp_path, monkeypatch, capsys, main, arguments, option):
    """Would catch an evaluation of hours whose figures end in a traceback, since --out lies in a file."""
    (tmp_path / "README.md").write_text("a file")
    for where, message in (("README.md/x.json", "is a file and no folder"), (".", "is a folder, and a file is needed")):
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, option, str(tmp_path / where)])
        with pytest.raises(SystemExit) as caught:
            main()
        line = capsys.readouterr().err.splitlines()[-1]
        assert caught.value.code == 2 and f"argument {option}: " in line and message in line
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
