"""Folders of weights that training leaves behind: whether they can be written, asked beforehand, and the writing.

Files are written into a folder inside the one that they are for, and are renamed when all of them are there: whatever
that one is (a link, a mount, in a folder that may not be written to), they are on its file system.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError

from cuda_kernels.bench.whole_file import move_into
from training.loop.space import require_space

PREFIX = ".unfinished-"


def require_name(key: str, folder: str) -> None:
    """Raise a ValueError that names the setting where a folder is none of its own: empty, `.`, `..` or `/`."""
    if Path(folder.strip()).name in ("", ".."):
        raise ValueError(f"{key} is the name of a folder of its own, not '{folder}'")


def require_output(folder: Path, num_bytes: int, what: str, names: Sequence[str]) -> None:
    """Try all that `written_into` does. What is in the folder stays as it is, and a new folder does not stay.

    Args:
        folder: where files will be written.
        num_bytes: most bytes of them.
        what: they are, for messages.
        names: patterns of their names.

    Raises:
        OSError: they cannot be written there, or there is too little room; one line that says which.
    """
    is_new = not os.path.exists(folder)
    try:
        require_space(folder, num_bytes, what)
        for found in (found for name in names for found in folder.glob(name) if found.is_dir()):
            raise OSError(f"{what} cannot be written to {folder}: {found.name} in it is a folder, and a file is needed")
        _try(folder, what)
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _try(folder: Path, what: str) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder) as inside:
            tried = folder / f"{Path(inside).name}.tried"
            (Path(inside) / "file").write_bytes(b"\n")
            (Path(inside) / "file").replace(tried)
            tried.unlink()
    except OSError as error:
        raise OSError(f"{what} cannot be written to {folder}: {error.strerror or error}") from error


@contextlib.contextmanager
def written_into(folder: Path) -> Iterator[Path]:
    """A new, empty folder; what is written there is moved into `folder` when all of it is there.

    Raises:
        OSError: something could not be written; what was in `folder` before is there still.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{PREFIX}*/"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder) as inside:
        try:
            yield Path(inside)
        except SafetensorError as error:
            raise OSError(f"{folder} could not be written: {error}") from error
        move_into(Path(inside), folder)
