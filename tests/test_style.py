"""Style is a test like any other, so that one command says whether all is well."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

CODE = ("selfspan_core", "cuda_kernels", "training")
FOLDERS = (*CODE, "tests")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
ROOMS = (
    "cuda_kernels",
    "errors",
    "paths",
    "params",
    "spans",
    "attention",
    "models",
    "engine",
    "tasks",
    "compare",
    "serve",
    "app",
    "bench_cpu",
    "bench_answers",
    "bench_systems",
    "bench_llamacpp",
    "training",
)
"""Each imports from those before it: see docs/architecture.md."""
BELOW_TASKS = {"cuda_kernels", "errors", "paths", "params", "spans", "attention", "models", "engine", "tasks"}
OPEN_TO = {
    "spans": {"errors"},
    "tasks": {"errors", "paths", "params", "spans", "engine.hints", "engine.rules", "engine.device_rules"},
    "app": {"errors", "paths", "models.registry", "serve", "tasks"},
    "bench_cpu": BELOW_TASKS,
    "bench_answers": BELOW_TASKS,
    "bench_systems": BELOW_TASKS,
    "bench_llamacpp": BELOW_TASKS | {"bench_cpu", "bench_systems"},
    # The benchmark of vLLM asks it as a client of the plugin does.
    "training": BELOW_TASKS | {f"serve.vllm_plugin.{name}" for name in ("plugin", "settings", "support")},
}
"""Rooms that import less than all that stands before them."""


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=["lint", "format"])
def test_ruff_is_clean(arguments):
    """Unused names, undocumented functions, unsorted imports and hand-made layout show here."""
    done = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_types_are_right():
    """A None that nobody asked about, and an argument of another type than its function names."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def python_files(*folders: str) -> dict[str, Path]:
    """Files of some folders and the app, by their paths in the project."""
    files = [ROOT / "app.py", *(file for folder in folders for file in sorted((ROOT / folder).rglob("*.py")))]
    return {file.relative_to(ROOT).as_posix(): file for file in files}


def test_files_have_one_job():
    """A file that grows and grows."""
    lines = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in python_files(*FOLDERS).items()}
    assert not {name for name, num in lines.items() if num > MAX_FILE_LINES}


def test_no_test_imports_another():
    """Modules of tests of which one cannot run, be split or be removed without another."""
    for name, file in python_files("tests").items():
        names = re.findall(
            r"^\s*(?:from|import) (?:tests\.)?(test_\w+|conftest)", file.read_text(encoding="utf-8"), re.M
        )
        assert not names, f"{name} imports {names}; what both need belongs into tests/support"


def test_functions_fit_a_screen():
    """A function that nobody reads to its end."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    too_long = [
        f"{name}:{node.lineno} {node.name}"
        for name, file in python_files(*FOLDERS).items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, kinds) and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not too_long


def modules() -> dict[str, Path]:
    """The project's modules by their dotted names; a package is its `__init__`."""
    return {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file
        for name, file in python_files(*CODE).items()
    }


def imported(file: Path, known: set[str], at_once: bool = False) -> Iterator[str]:
    """Modules of the project that a file imports; `at_once`: neither in functions nor for types alone."""
    nodes: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in {*CODE, "app"}:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in known else node.module
        is_later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if not (at_once and is_later):
            nodes += ast.iter_child_nodes(node)


def test_no_module_imports_itself_in_a_circle():
    """Two modules of which each needs the other: whether they can be imported depends on which one comes first."""
    known = modules()
    graph = {name: set(imported(file, set(known), at_once=True)) for name, file in known.items()}
    assert sum(map(len, graph.values())) > len(graph)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def room_of(module: str) -> str:
    """The part of the house that a module belongs to."""
    first, *rest = module.split(".")
    return rest[0] if first == "selfspan_core" and rest else first


def may_import(importer: str, module: str) -> bool:
    """Whether the direction of imports allows one."""
    own, other = room_of(importer), room_of(module)
    if own == other or own == "__main__":
        return True
    if own in OPEN_TO:
        return other in OPEN_TO[own] or module.removeprefix("selfspan_core.") in OPEN_TO[own]
    return ROOMS.index(other) < ROOMS.index(own)


def test_imports_point_one_way():
    """A task that reaches into the engine, an engine that knows tasks, a kernel that needs the rest of the project."""
    known = modules()
    assert {room_of(module) for module in known} == {*ROOMS, "__main__", "selfspan_core"}
    wrong = [
        f"{name} imports {other}"
        for name, file in known.items()
        for other in imported(file, set(known))
        if not may_import(name, other)
    ]
    assert not wrong
    assert may_import("selfspan_core.tasks.base", "selfspan_core.engine.rules")
    assert not may_import("selfspan_core.tasks.base", "selfspan_core.engine.events")
    assert not may_import("selfspan_core.engine.engine", "selfspan_core.tasks.base")


def test_cuda_sources_are_formatted():
    """Hand-made layout of the kernels, and lines that do not fit a screen."""
    files = [*ROOT.glob("cuda_kernels/csrc/*.cu*"), *ROOT.glob("tests/cuda_on_cpu/*")]
    command = [Path(sys.executable).parent / "clang-format", "--dry-run", "--Werror", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for file in files:
        assert max(map(len, file.read_text().splitlines())) <= 120, file
