"""JSON files of models, which may come from anybody: bounded, with errors of one line. No torch."""

import json
from pathlib import Path
from typing import Any

from selfspan_core.errors import ModelError

MOST_BYTES = 1 << 26
"""The index of a model of some thousand tensors has 100 kB, a large tokenizer 20 MB."""


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelError: the file is missing, may not be read, is too long, no JSON, or holds something else than an object.
    """
    require_readable(file)
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ModelError(f"{file} is too long for a file of settings: {file.stat().st_size:,} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of too many digits, too many levels
        raise ModelError(f"{file} is damaged, it is no JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} is damaged: it holds no object, but {type(content).__name__}")
    return content


def require_readable(file: Path) -> None:
    """Raise a ModelError that says what to do where the process's user may not read a file; others raise nothing."""
    try:
        file.open("rb").close()
    except PermissionError:
        raise ModelError(f"{file} may not be read by this user: its owner has to allow it (chmod a+r)") from None
    except OSError:
        return  # whoever reads it says what is wrong


def one_line(error: BaseException, most: int = 240) -> str:
    """What an error says, on one line and not too long; its type, where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"
