"""Where training writes: a place that cannot be written is told before training, and what can be is written whole."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError

from tests.support.paths import ROOT
from tests.support.training_tools import write_base_config, write_config
from training import finetune, pretrain
from training.loop.output import require_name, require_output, written_into
from training.loop.trainer import Trainer

pytest_plugins = ["tests.support.training_fixtures"]

USER = 65534
AS_A_USER = f"""
import os, sys
from pathlib import Path
from training.loop.output import require_output, written_into
if os.geteuid() == 0:
    os.setegid({USER}), os.seteuid({USER})
parent = Path(sys.argv[1])
require_output(parent / "adapter", 1, "the adapter", ["a.json"])
with written_into(parent / "adapter") as unfinished:
    (unfinished / "a.json").write_text("new")
for name in ("adapter-step-1", "closed"):
    try:
        require_output(parent / name, 1, "the adapter", ["a.json"])
    except OSError as error:
        print(error)
"""


def refused(monkeypatch, capsys, module, path: Path) -> str:
    """The last line of a command that refuses to train."""
    monkeypatch.setattr(pretrain, "HELDOUT_PROBLEMS", 1)
    monkeypatch.setattr(Trainer, "run", lambda *_: pytest.fail("it was trained"))
    monkeypatch.setattr(sys, "argv", ["train", "--config", str(path)])
    with pytest.raises(SystemExit) as caught:
        module.main()
    line = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and ": error: " in line
    return line


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("module", "folder", "file", "message"),
    [
        (finetune, "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "is a folder, and a file"),
        (finetune, "adapter/training.json", "adapter/adapter_config.json", "is a folder, and a file"),
        (finetune, "adapter-step-1/adapter_config.json", "adapter/adapter_config.json", "is a folder, and a file"),
        (finetune, "adapter", "adapter-step-1", "it is a file, and a folder is needed"),
        (finetune, "run/metrics.jsonl", "run/other", "metrics.jsonl: Is a directory"),
        (finetune, "run", "run/checkpoints/unfinished", "is in their way, which is no folder"),
        (finetune, "run", "run/checkpoints/removed", "is in their way, which is no folder"),
        (pretrain, "base/model-00001-of-00002.safetensors", "base/config.json", "is a folder, and a file"),
        (pretrain, "run/metrics.jsonl", "base/config.json", "metrics.jsonl: Is a directory"),
    ],
)
def test_places_in_the_way(tmp_path, tiny_base, monkeypatch, capsys, fresh_accelerate, module, folder, file, message):
    """Would catch weights that are lost after hours, since a folder has the name of one of their files."""
    path = write_config(tmp_path, tiny_base, steps=2) if module is finetune else write_base_config(tmp_path)
    config = yaml.safe_load(path.read_text())
    if module is finetune:
        config["loop"]["snapshots"] = [1]
    path.write_text(yaml.safe_dump(config))
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("old")
    before = contents(tmp_path)
    assert message in refused(monkeypatch, capsys, module, path)
    assert contents(tmp_path) == before and not list(tmp_path.rglob(".unfinished*"))


@pytest.mark.parametrize("module", [finetune, pretrain])
@pytest.mark.parametrize("key", ["output", "run"])
@pytest.mark.parametrize("name", [".", "", "/", "./", "..", "runs/..", " "])
def test_names_that_are_no_folder_of_their_own(tmp_path, tiny_base, monkeypatch, capsys, module, key, name):
    """Would catch a traceback after the last step, and snapshots called `-step-1`."""
    path = write_config(tmp_path, tiny_base, steps=1) if module is finetune else write_base_config(tmp_path)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: name}))
    assert f"{key} is the name of a folder of its own, not '{name}'" in refused(monkeypatch, capsys, module, path)
    require_name(key, "adapter/")


def test_trying_a_place_leaves_nothing(tmp_path):
    """Would catch an empty adapter that stays behind a refused run, and a file of the last one that does not."""
    require_output(tmp_path / "new", 1, "the adapter", ["a.json"])
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a.json").write_text("old")
    require_output(tmp_path / "old", 1, "the adapter", ["a.json"])
    assert contents(tmp_path) == {"old/a.json": "old"} and [found.name for found in tmp_path.iterdir()] == ["old"]
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(OSError, match="link: it is a link to nothing"):
        require_output(tmp_path / "link", 1, "the adapter", ["a.json"])


def test_what_was_there_outlives_a_failed_write(tmp_path):
    """Would catch old weights lost with the new ones, half of each in one folder, and what is left of the attempt."""
    folder = tmp_path / "adapter"
    (folder / "b.json").mkdir(parents=True)
    (folder / "a.safetensors").write_text("old")
    (tmp_path / "adapter.unfinished").write_text("somebody's")
    before = contents(tmp_path)
    with pytest.raises(OSError, match="No space left"), written_into(folder) as unfinished:
        (unfinished / "a.safetensors").write_text("new")
        raise SafetensorError("No space left on device")
    with pytest.raises(OSError, match=r"b\.json is a folder"), written_into(folder) as unfinished:
        (unfinished / "a.safetensors").write_text("new")
        (unfinished / "b.json").write_text("new")
    assert contents(tmp_path) == before and not list(folder.glob(".*"))
    (folder / ".unfinished-killed").mkdir()
    with written_into(folder) as unfinished:
        (unfinished / "a.safetensors").write_text("new")
    assert contents(tmp_path) == before | {"adapter/a.safetensors": "new"} and not list(folder.glob(".*"))


def test_a_folder_on_another_file_system(tmp_path):
    """Would catch weights that are written beside a link and cannot be renamed into what it leads to."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system")
    with tempfile.TemporaryDirectory(dir=shared) as elsewhere:
        (tmp_path / "adapter").symlink_to(elsewhere)
        require_output(tmp_path / "adapter", 1, "the adapter", ["a.json"])
        with written_into(tmp_path / "adapter") as unfinished:
            (unfinished / "a.json").write_text("new")
        assert contents(Path(elsewhere)) == {"a.json": "new"}


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
def test_folders_of_others():
    """Would catch an adapter that needs its parent folder to be writable, too, and a closed folder found too late."""
    # Not tmp_path: only its owner may look into it.
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        for folder, mode in (("adapter", 0o777), ("closed", 0o555)):
            (parent / folder).mkdir()
            (parent / folder / "a.json").write_text("old")
            (parent / folder).chmod(mode)
        parent.chmod(0o555)
        done = subprocess.run([sys.executable, "-c", AS_A_USER, name], cwd=ROOT, capture_output=True, text=True)
        for folder in (parent, parent / "closed"):
            folder.chmod(0o755)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == 2 and all("cannot be written to" in line for line in lines)
        assert all(line.endswith("Permission denied") for line in lines)
        assert contents(parent) == {"adapter/a.json": "new", "closed/a.json": "old"}
