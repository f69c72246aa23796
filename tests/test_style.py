"""Style is a test like any other, so that one command says whether all is well."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=["lint", "format"])
def test_ruff_is_clean(arguments):
    """Unused names, undocumented functions, unsorted imports and hand-made layout show here."""
    done = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_cuda_sources_are_formatted():
    """Hand-made layout of the kernels, and lines that do not fit a screen."""
    files = [*ROOT.glob("cuda_kernels/csrc/*.cu*"), *ROOT.glob("tests/cuda_on_cpu/*")]
    command = [Path(sys.executable).parent / "clang-format", "--dry-run", "--Werror", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for file in files:
        assert max(map(len, file.read_text().splitlines())) <= 120, file
