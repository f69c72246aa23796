"""The provenance of a results file: commit, machine, versions, command. Benchmarks write it beside their figures.

It lies here because imports point one way: `selfspan_core` and `training` may import `cuda_kernels`, which imports
neither.
"""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "gradio",
    "cupy-cuda13x",
    "numpy",
    "flashinfer-python",
    "vllm",
    "xllamacpp",
)


def provenance() -> dict:
    """JSON-able facts about this run.

    A machine without a git checkout names the commit in the environment: SELFSPAN_COMMIT, and SELFSPAN_DIRTY=1 if
    the tree differs from it.
    """
    commit, dirty = _commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "command": command(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": {"python": platform.python_version()} | _versions(),
    }


def weights_digest(folder: str | Path) -> str:
    """SHA-256 over a folder's safetensors files, in the order of their names: says which weights were measured.

    A commit alone does not, where weights are measured before they are committed.

    Raises:
        FileNotFoundError: there are none.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no safetensors files")
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()


def command() -> str:
    """The command line of this run; of absolute paths outside the working directory only the last part."""
    module = getattr(sys.modules["__main__"].__spec__, "name", None) if sys.modules["__main__"].__spec__ else None
    program = (
        ["python", "-m", module.removesuffix(".__main__")] if module else ["python", _without_private_path(sys.argv[0])]
    )
    return shlex.join([*program, *map(_without_private_path, sys.argv[1:])])


def _without_private_path(argument: str) -> str:
    """An argument, or the value behind its `=`, as it may be published."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    path = Path(value)
    if path.is_absolute():
        value = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
    return option + equals + value


def machine() -> dict:
    """Processor, cores, threads that PyTorch uses, memory, and the GPUs if there are any."""
    import torch

    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(memory_gib, 1),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["num_gpus"] = torch.cuda.device_count()
    return facts


def _commit() -> tuple[str | None, bool | None]:
    if "SELFSPAN_COMMIT" in os.environ:
        return os.environ["SELFSPAN_COMMIT"], os.environ.get("SELFSPAN_DIRTY") == "1"
    root = Path(__file__).resolve().parents[2]
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        # Untracked files count: a module that is not committed yet can change every figure. Results do not: they are
        # what is being written.
        return commit, bool(_git(root, "status", "--porcelain", "--", ".", ":(exclude)assets/results").strip())
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
