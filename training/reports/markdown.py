"""Results files as Markdown: what the parts of the report share."""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from selfspan_core.tasks.base import Task

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\]\((assets/[^)\s]+)\)")


def read(path: str) -> dict | None:
    """A results file, or None where it does not exist yet."""
    file = ROOT / path
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def read_all(name: str) -> dict[str, dict]:
    """Path -> contents of every results file whose name begins so: one for each GPU that was measured on."""
    paths = sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / "assets/results").glob(f"{name}_*.json"))
    return {path: results for path in paths if (results := read(path))}


def not_measured(task: type[Task[Any]]) -> str:
    """What stands where a task has no results file yet."""
    return f"{task.answers.capitalize()} of the task {task.name}: not measured yet.\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def picture(path: str, text: str) -> str:
    """The picture that was drawn of a results file, or nothing where there is none."""
    drawn = Path(path).with_suffix(".png")
    return f"![{text}]({drawn.as_posix()})\n" if (ROOT / drawn).exists() else ""


def origin(results: dict, path: str) -> str:
    """Where figures come from, in a few words: file, device, commit."""
    machine = results["machine"]
    device = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    if machine.get("num_gpus", 1) > 1:
        device = f"{machine['num_gpus']} x {device}"
    commit = (results["commit"] or "unknown")[:10] + (" (uncommitted changes)" if results["dirty"] else "")
    return f"[`{path}`]({path}), {device}, commit {commit}"


def source(results: dict, path: str) -> str:
    """One line that says where figures come from, and which command made them."""
    return f"\nFrom {origin(results, path)}: `{results['command']}`.\n"


def from_document(text: str, document: str) -> str:
    """A text's links to files in `assets/`, as seen from the folder of a document (its path from the root)."""
    folder = posixpath.dirname(document) or "."
    return _LINK.sub(lambda link: f"]({posixpath.relpath(link[1], folder)})", text)
