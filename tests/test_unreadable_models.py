"""Files of a model that another user may not read: named, with what to do, and not called damaged or missing."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from selfspan_core.errors import ModelError
from selfspan_core.models.adapters import read_adapter
from selfspan_core.models.gguf_file import GgufFile
from selfspan_core.models.json_file import read_object
from selfspan_core.models.weight_files import shapes_of
from tests.support.paths import ROOT

READERS = {
    "adapter_model.safetensors": lambda file: read_adapter(file.parent),
    "adapter_config.json": read_object,
    "model.safetensors": shapes_of,
    "model.gguf": GgufFile,
}
USER = 65534
AS_A_USER = f"""
import os, sys
from pathlib import Path
from selfspan_core.errors import ModelError
from selfspan_core.models.adapters import read_adapter
if os.geteuid() == 0:
    os.setegid({USER}), os.seteuid({USER})
for name in sys.argv[1:]:
    try:
        read_adapter(Path(name))
    except ModelError as error:
        print(error)
"""


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch, name):
    """Would catch a whole file that is called damaged, or a traceback, where its owner alone may read it."""
    file, opened = tmp_path / name, Path.open
    file.write_bytes(b"{}")

    def refusing(path, *arguments, **options):
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(ModelError) as caught:
        READERS[name](file)
    said = str(caught.value)
    assert said == f"{file} may not be read by this user: its owner has to allow it (chmod a+r)"


@pytest.mark.skipif(os.name == "nt", reason="needs modes of files")
def test_an_adapter_of_another_user():
    """Would catch the same where the system refuses by itself: the file, or the folder that it lies in."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folders = [Path(place) / "file", Path(place) / "folder"]
        for folder in folders:
            folder.mkdir()
            for name in ("adapter_model.safetensors", "adapter_config.json"):
                (folder / name).write_text("{}")
        (folders[0] / "adapter_model.safetensors").chmod(0)
        folders[1].chmod(0)
        command = [sys.executable, "-c", AS_A_USER, *map(str, folders)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        folders[1].chmod(0o755)
    said = "may not be read by this user: its owner has to allow it (chmod a+r)"
    assert done.stdout.splitlines() == [f"{folder / 'adapter_model.safetensors'} {said}" for folder in folders]
