"""Whether a run's files can be written at all, asked before hours of training."""

import os
import shutil
import tempfile
from pathlib import Path

MEGABYTE = 1_000_000


def require_space(folder: str | Path, num_bytes: int, what: str) -> None:
    """Make a folder, write a byte into it, and look whether there is room.

    Args:
        folder: where files will be written.
        num_bytes: most bytes of them.
        what: they are, for messages.

    Raises:
        OSError: nothing can be written there, or there is too little room; one line that says which.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\n")
            file.flush()
    except FileExistsError as error:
        if folder.is_symlink() and not os.path.exists(folder):
            raise OSError(f"{what} cannot be written to {folder}: it is a link to nothing") from error
        raise OSError(f"{what} cannot be written to {folder}: it is a file, and a folder is needed") from error
    except NotADirectoryError as error:
        raise OSError(f"{what} cannot be written to {folder}: it would lie in a file, not in a folder") from error
    except OSError as error:
        raise OSError(f"{what} cannot be written to {folder}: {error.strerror or error}") from error
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(
            f"{what} may need {num_bytes / MEGABYTE:,.0f} MB in {folder}, where {free / MEGABYTE:,.0f} MB are free"
        )


def require_file(file: Path, what: str) -> None:
    """Whether a file, where it is there already, can be written on; it stays as it is. Raises OSError where not."""
    try:
        if os.path.lexists(file):
            with file.open("ab"):
                pass
    except OSError as error:
        raise OSError(f"{what} cannot be written to {file}: {error.strerror or error}") from error


def require_no_file(folder: Path, what: str) -> None:
    """Whether a folder can be made and removed there. Raises OSError where something else has its name."""
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise OSError(f"{what} cannot be written: {folder} is in their way, which is no folder; remove it")
