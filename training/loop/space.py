"""Whether a run's files can be written at all, asked before hours of training."""

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


def unfinished_beside(folder: str | Path) -> Path:
    """A new, empty folder beside another one, for files that get their places when all of them are written."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    return beside
