"""Where a compiler is required, its absence is a failure."""

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize(("required", "outcome"), [("", "1 skipped"), ("browser,compiler", "1 error")])
def test_a_missing_compiler(tmp_path, required, outcome):
    """Would catch a continuous integration that passes because nothing could be tested."""
    test = "tests/test_gemm.py::test_any_shape"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", test],
        env={**environment, "PATH": str(tmp_path), "SELFSPAN_REQUIRE": required},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert outcome in done.stdout, done.stdout
    assert (done.returncode == 0) == (not required)
