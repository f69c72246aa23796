"""Small configurations, and training in a process of its own."""

import subprocess
import sys
from pathlib import Path

import yaml

from tests.support.paths import ROOT, SHIPPED


def write_config(folder: Path, base: Path, steps: int, annotated: bool = True, workers: int = 1) -> Path:
    """Write a small configuration and return its path; no workers where the tests' own process trains: it has torch's
    threads in it and is not to be forked."""
    config = {
        "base": str(base),
        "task": "arithmetic",
        "annotated": annotated,
        "output": str(folder / "adapter"),
        "run": str(folder / "run"),
        "lora": {"rank": 2, "alpha": 4},
        "learning_rate": 0.001,
        "mask_off_share": 0.25 if annotated else 0.0,
        "heldout_operands": [2],
        "heldout_problems": 2,
        "loop": {
            "steps": steps,
            "rows_per_step": 2,
            "micro_rows": 1,
            "row_tokens": 1024,
            "warmup_steps": 1,
            "workers": workers,
            "log_every": 1,
            "checkpoint_every": 2,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def train(*arguments: str, launcher: tuple[str, ...] = ()) -> str:
    command = [sys.executable, "-m", *launcher, "training.finetune", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def checkpoints_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def write_base_config(folder: Path) -> Path:
    config = {
        "text": str(folder / "no-text"),
        "tokenizer": str(SHIPPED),
        "output": str(folder / "base"),
        "run": str(folder / "run"),
        "mixture": {"arithmetic-plain": 1},
        "model": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 32},
        "loop": {"steps": 1, "rows_per_step": 1, "micro_rows": 1, "max_intervals": 1},
    }
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
