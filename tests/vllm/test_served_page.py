"""What docs/serving.md shows, run as it stands there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from selfspan_core.models.export import export_merged
from selfspan_core.paths import ADAPTERS
from tests.support.vllm_tools import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]


def test_the_pages_script_answers(tmp_path):
    """Would catch a script that vLLM's processes run again, one that takes all memory, and names that are gone."""
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    script = tmp_path / "asks.py"
    script.write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    export_merged("selfspan-17m", ADAPTERS / "arithmetic-span", tmp_path / "exported/arithmetic", "float32")
    own = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(("VLLM_ENABLE", "VLLM_USE"))}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=os.environ | own, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert any("2907" in line and line.endswith(" 2") for line in done.stdout.splitlines()), done.stdout
