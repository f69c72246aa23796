"""The package: what pip installs is what the requirements files name, and it runs from anywhere."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
SETS = {
    "requirements.txt": [*PROJECT["dependencies"], *EXTRAS["app"], *EXTRAS["gpu"]],
    "requirements-train.txt": EXTRAS["train"],
    # Of its own: both begin with all that training needs.
    "requirements-test.txt": [line for line in EXTRAS["test"] if not line.startswith("selfspan[")],
}


def by_name(lines) -> dict[str, Requirement]:
    """Requirements by the names that pip knows them by."""
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


@pytest.mark.parametrize("name", SETS)
def test_requirements_files_and_the_package_agree(name):
    """Would catch a library that `pip install .` leaves out, and a pin that the package's own bounds refuse."""
    lines = (line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    pinned = by_name(line for line in lines if line and not line.startswith(("#", "-r ")))
    named = by_name(SETS[name])
    assert pinned.keys() == named.keys()
    for key, pin in pinned.items():
        bounds = named[key]
        assert str(pin.marker) == str(bounds.marker), key
        versions = [one.version for one in pin.specifier if one.operator == "=="]
        assert versions or pin.specifier == bounds.specifier, key
        assert all(version in SpecifierSet(str(bounds.specifier)) for version in versions), key


def test_the_lock_holds_what_requirements_ask_for():
    """Would catch a lock of other versions than those that tests run with, and one with somebody's own addresses."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = by_name(line for line in lines if not line.startswith("#"))
    assert len(locked) > 50 and all(str(one) == f"{one.name}{one.specifier}" for one in locked.values())
    for name, bounds in by_name(SETS["requirements.txt"]).items():
        (version,) = (one.version for one in locked[name].specifier)
        assert version in bounds.specifier, name
    asked = [line for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    for name, pin in by_name(asked).items():
        (version,) = (one.version for one in locked[name].specifier)
        assert version in pin.specifier, name


def test_every_dependency_has_an_upper_bound():
    """A release that does not exist yet, installed by somebody in a year, and all that it breaks."""
    named = [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    for one in map(Requirement, (line for line in named if not line.startswith("selfspan["))):
        assert any(bound.operator in ("<", "<=", "==") for bound in one.specifier), one


def python(*arguments, path: Path, cwd: Path, **options) -> subprocess.CompletedProcess:
    """A Python process elsewhere, for which `path` comes first."""
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, **options
    )


def sources(folder: Path, root: Path) -> list[str]:
    """Files of a folder, caches apart, by their paths in `root`."""
    files = (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return [file.relative_to(root).as_posix() for file in files]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built without network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, ROOT]
    done = python(*command, path=folder, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder that holds the wheel's contents and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    command = ["-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", folder, wheel]
    done = python(*command, path=folder, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_wheel_holds_what_running_needs(wheel):
    """Would catch CUDA sources, configurations or weights that are left out, and tests or results that come along."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = [file for name in ("selfspan_core", "cuda_kernels", "training") for file in sources(ROOT / name, ROOT)]
    for name in ("base", "adapters", "app"):
        wanted += [f"selfspan_core/{file}" for file in sources(ROOT / "assets" / name, ROOT)]
    assert {"app.py", "cuda_kernels/csrc/attention.cu", "cuda_kernels/csrc/tile.cuh", *wanted} <= names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"app.py", "selfspan_core", "cuda_kernels", "training", f"selfspan-{PROJECT['version']}.dist-info"}
    assert not any("/results/" in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("command", [("-m", "selfspan_core"), ("bin/selfspan",)], ids=["module", "console"])
def test_the_installed_package_answers_from_another_folder(installed, tmp_path, command):
    """Would catch weights that are looked for beside a checkout, and a console command without its function."""
    start = [installed / word if word.startswith("bin/") else word for word in command]
    done = python(*start, "run", "--attention", "sparse", path=installed, cwd=tmp_path, input="1+2\n")
    assert done.returncode == 0, done.stderr
    assert "answer: 3 (right)" in done.stdout
    where = python("-c", "from selfspan_core.paths import BASE; print(BASE)", path=installed, cwd=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(installed)
