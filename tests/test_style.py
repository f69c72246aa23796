"""Style is a test like any other, so that one command says whether all is well."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=["lint", "format"])
def test_ruff_is_clean(arguments):
    """Unused names, undocumented functions, unsorted imports and hand-made layout show here."""
    done = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
