"""Results files as Markdown: what the parts of the report share."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def read(path: str) -> dict | None:
    """A results file, or None where it does not exist yet."""
    file = ROOT / path
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def source(results: dict, path: str) -> str:
    """One line that says where figures come from."""
    machine = results["machine"]
    device = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    if machine.get("num_gpus", 1) > 1:
        device = f"{machine['num_gpus']} x {device}"
    commit = (results["commit"] or "unknown")[:10] + (" (uncommitted changes)" if results["dirty"] else "")
    return f"\nFrom [`{path}`]({path}): `{results['command']}`, {device}, commit {commit}.\n"
