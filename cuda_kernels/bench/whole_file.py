"""Files that are whole or not there: written beside their place under another name, and renamed when they are done.

It lies here for the same reason as `provenance`: everything that writes results may import it.
"""

import argparse
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file; whatever interrupts that, the file that was there before is there still.

    Args:
        path: of the file; its folder is made.
        content: text is written in UTF-8.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name is the process's own: two that write one file do not write into each other's.
    beside = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def move_into(beside: Path, folder: Path) -> None:
    """Rename all files of a folder into another one, over those of the same names; the first folder is gone then.

    Files that others name (a configuration, an index) come last: what they name is there already. Each may be read by
    whoever may read a new file: what writes safetensors makes them its user's alone.

    Raises:
        OSError: a folder has the name of a file; nothing was moved then. Or a file could not be renamed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(beside.iterdir(), key=lambda file: (file.suffix != ".safetensors", file.name))
    for place in (folder / file.name for file in files):
        if place.is_dir():
            raise IsADirectoryError(f"{place} is a folder, and a file is needed")
    make_usual(files)
    for file in files:
        file.replace(folder / file.name)
    beside.rmdir()


def make_usual(files: Sequence[Path]) -> None:
    """Give files of one folder the mode that a new file has there by the process's umask.

    Raises:
        OSError: the mode of one cannot be set.
    """
    if not files:
        return
    new = files[0].with_name(f".{files[0].name}.{os.getpid()}.mode")
    # The umask cannot be asked for without setting it, which other threads would see.
    with new.open("xb"):
        mode = new.stat().st_mode
    new.unlink()
    for file in files:
        if file.is_file():
            file.chmod(stat.S_IMODE(mode))


def place(text: str) -> Path:
    """A command line's path of a file that could be written; the `type` of an argument for argparse."""
    try:
        require_place(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def require_place(path: str | Path) -> None:
    """Whether a file could be written there, asked before anything is computed for it. Nothing stays behind.

    Raises:
        OSError: it is a folder, lies in a file, or its folder cannot be written to; one line.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and a file is needed")
    above = next(folder for folder in (*path.absolute().parents,) if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{path} lies in {above}, which is a file and no folder")
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
