"""What the rehearsal of fresh machines stands on: a Python that somebody without rights can start."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import rehearse_machines
from tests.support.paths import ROOT


@pytest.mark.skipif(os.name == "nt" or shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_python_in_somebodys_home_is_lent():
    """Would catch a rehearsal that tries nothing as a user without rights, since pyenv's Python lies in root's home."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(place) / "clone"
        folder.mkdir()
        machine = rehearse_machines.users(folder, Path(sys.executable))[-1]
        machine = rehearse_machines.lent(machine, Path(place) / "python")
        said = machine.run(machine.python, "-c", "import sys, json; print(sys.base_prefix, sys.version_info[:2])")
        assert said.stdout.strip() == f"{place}/python {sys.version_info[:2]}", said.stderr
        assert machine.can_start() and machine.environment["PYTHONPATH"].endswith("site-packages")
    assert not machine.can_start() and ROOT.is_dir()
