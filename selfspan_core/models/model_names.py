"""A model's name: a folder, a GGUF file or a hub id. Decided here, without network access. No torch."""

import os
from collections.abc import Collection
from pathlib import Path

GGUF = ".gguf"


def is_gguf(name: str | Path) -> bool:
    """Whether a name is that of a GGUF file, there or not."""
    return str(name).lower().endswith(GGUF)


def why_not_found(name: str | Path, known: Collection[str] = ()) -> str | None:
    """Why a name is no folder or GGUF file that exists, nor a possible hub id (`owner/name`); None if it is one.

    `assets/nope` could be a hub id by its form; where a folder `assets` exists, it is a mistyped path.

    Args:
        known: names that are valid, too; the reason lists them, and says how folders and hub ids are written.
    """
    text = str(name)
    if Path(text).expanduser().is_dir():
        return None
    if is_gguf(name):
        return None if Path(text).expanduser().is_file() else f"there is no file {text!r}"
    owner, slash, rest = text.partition("/")
    is_path = isinstance(name, Path) or text.startswith((".", "~", os.sep)) or "/" in rest or Path(owner).is_dir()
    if not is_path and slash and owner and rest:
        return None
    hint = "" if is_path else "; a model of the hub is called owner/name"
    if known:
        written = "a folder or a GGUF file is written as its path, a model of the hub as owner/name"
        hint = f"; known models: {', '.join(known)}; {written}"
    return f"there is no model folder {text!r}{hint}"
