"""A model's name: a folder or a hub id. This file decides which of the two it is, without network access. No torch."""

import os
from collections.abc import Collection
from pathlib import Path


def why_not_found(name: str | Path, known: Collection[str] = ()) -> str | None:
    """Why a name is neither a folder that exists nor a possible hub id (`owner/name`), or None if it is one of them.

    `assets/nope` could be a hub id by its form; where a folder `assets` exists, it is a mistyped path.

    Args:
        known: names that are valid, too; the reason lists them, and says how folders and hub ids are written.
    """
    text = str(name)
    if Path(text).expanduser().is_dir():
        return None
    owner, slash, rest = text.partition("/")
    is_path = isinstance(name, Path) or text.startswith((".", "~", os.sep)) or "/" in rest or Path(owner).is_dir()
    if not is_path and slash and owner and rest:
        return None
    hint = "" if is_path else "; a model of the hub is called owner/name"
    if known:
        hint = f"; known models: {', '.join(known)}; a folder is written as its path, a model of the hub as owner/name"
    return f"there is no model folder {text!r}{hint}"
