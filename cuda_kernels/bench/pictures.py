"""Pictures of results files: their command line, and the note in each that says of which files it was drawn.

A results file is measured again and its picture is forgotten: so a picture carries the SHA-256 of the JSON that it was
drawn from, and a test compares it with the file that lies beside the picture. It lies here because everything that
draws results may import it.
"""

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cuda_kernels.bench.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN_FROM = "Drawn from"
"""Keyword of a PNG's text chunk: a line per results file, digest and name, as `sha256sum` writes them."""


class PictureError(Exception):
    """The picture cannot be made; the message, one line, gives the reason."""


def digest(content: bytes) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def drawn_from(picture: Path) -> dict[str, str]:
    """The names of the results files that a PNG was drawn from, and their digests; empty where it does not say."""
    from PIL import Image

    with Image.open(picture) as image:
        lines = getattr(image, "text", {}).get(DRAWN_FROM, "").splitlines()
    return {name: value for value, name in (line.split(maxsplit=1) for line in lines)}


def save_picture(figure: "Figure", out: Path, sources: Mapping[str, bytes]) -> None:
    """Write a figure with its own resolution; its format follows from the file name's suffix.

    Args:
        figure: that was drawn.
        out: the picture; whatever interrupts the writing, the one before is there still.
        sources: name -> content of the results files that it was drawn from. A PNG says so in a text chunk; other
            formats have no place for it that matplotlib writes.

    Raises:
        OSError: it cannot be written.
    """
    kind = out.suffix[1:].lower()
    note = "\n".join(f"{digest(content)}  {name}" for name, content in sources.items())
    metadata = {DRAWN_FROM: note} if kind == "png" else None
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi="figure", metadata=metadata)
    write_whole(out, content.getvalue())


def check_target(out: Path) -> None:
    """Check that matplotlib is installed and can write a file of this type.

    Raises:
        PictureError: matplotlib is missing or cannot write it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PictureError("a picture needs matplotlib: pip install matplotlib") from error
    kinds = Figure().canvas.get_supported_filetypes()
    if out.suffix[1:].lower() not in kinds:
        raise PictureError(f"{out}: the name has to end in one of .{', .'.join(sorted(kinds))}")
    if not out.parent.is_dir():
        raise PictureError(f"{out}: there is no folder {out.parent}")


def draw_files(results: Sequence[Path], out: Path, draw: "Callable[..., Figure]") -> None:
    """Draw results files as one picture.

    Args:
        results: JSON; each is read once, so that its digest is that of what is drawn.
        out: the picture.
        draw: makes a figure of the files' contents, an argument each; raises PictureError where they are another
            benchmark's.

    Raises:
        PictureError: there is no such file, it is not JSON, or `draw` refuses it.
        OSError: the picture cannot be written.
    """
    contents: dict[str, bytes] = {}
    parsed = []
    for path in results:
        try:
            contents[path.name] = path.read_bytes()
            parsed.append(json.loads(contents[path.name]))
        except OSError as error:
            raise PictureError(error.strerror) from error
        except ValueError as error:
            raise PictureError(f"no JSON: {error}") from error
    save_picture(draw(*parsed), out, contents)


def command_line(description: str, draw: "Callable[..., Figure]", *, takes_several: bool = False) -> None:
    """Parse RESULTS.json and --out, and draw the results. An error is one line and exit status 1.

    Args:
        description: what is told of the command.
        draw: as `draw_files` has it.
        takes_several: whether one picture can show several results files.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("results", type=Path, nargs="+" if takes_several else 1)
    parser.add_argument("--out", type=Path, help="default: beside the results, as .png")
    arguments = parser.parse_args()
    out = arguments.out or arguments.results[0].with_suffix(".png")
    try:
        check_target(out)
    except PictureError as error:
        sys.exit(f"error: {error}")
    try:
        draw_files(arguments.results, out, draw)
    except (PictureError, OSError) as error:
        sys.exit(f"error: {', '.join(map(str, arguments.results))}: {error}")
    print(f"wrote {out}")
