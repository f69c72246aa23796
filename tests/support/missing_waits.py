"""The kernels' sources without one of their waits, and tests run with them in a process of their own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cuda_kernels.compile import FOLDER
from tests.support.paths import ROOT


def sources_without(folder: Path, name: str, number: int) -> Path:
    """A copy of the sources in which one file lacks one of its `__syncwarp`, counted from 0."""
    sources = folder / "csrc"
    shutil.copytree(FOLDER, sources)
    text = (sources / name).read_text(encoding="utf-8")
    start, end = [match.span() for match in re.finditer(r"__syncwarp\(\);", text)][number]
    (sources / name).write_text(text[:start] + ";" + text[end:], encoding="utf-8")
    return sources


def run_with(sources: Path, test: str, **environment: str) -> subprocess.CompletedProcess:
    """A test with other sources."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", test]
    environment = os.environ | {"KERNEL_SOURCES": str(sources)} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
