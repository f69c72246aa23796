"""The safetensors files of a base: which they are, and which tensors they say they hold, before any is read.

A pickle runs code when it is loaded, and transformers can be led to one in several ways (an index, a line of
`config.json`, an adapter beside the base): each is refused here with a one-line error.
"""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from selfspan_core.errors import ModelError
from selfspan_core.models.json_file import one_line, read_object, require_readable

INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_FLOATS = ("F64", "F32", "F16", "BF16")


def file_of(base: str | Path, name: str) -> Path | None:
    """A file of a base, downloaded if the base is on the hub; None if the base has no such file."""
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        found = cached_file(str(base), name)
    except OSError:  # the hub has no such file or cannot be reached: then it cannot provide the weights either
        return None
    return None if found is None else Path(found)


def require_safetensors(base: str | Path, named: object) -> None:
    """Refuse a base for which transformers would load a pickle, or a file outside of its folder.

    Args:
        named: `transformers_weights` of its config.json, the file that is read in place of the usual one; or None.

    Raises:
        ModelError: such a name, an index that names such a file, or an adapter beside the base, which would be loaded.
    """
    if named is not None:
        endings = (".safetensors", ".safetensors.index.json")
        if not isinstance(named, str) or not named.endswith(endings) or not _is_plain(named):
            raise ModelError(
                f"the config.json of {str(base)!r} names the weights {str(named)[:80]!r}: weights are read from "
                "safetensors files beside it only"
            )
    if file_of(base, "adapter_config.json") is not None:
        raise ModelError(f"{str(base)!r} holds an adapter (adapter_config.json), and is no base model")
    index = file_of(base, named if isinstance(named, str) and named.endswith(".index.json") else INDEX)
    if index is not None:
        _shards(index, Path(base).expanduser().is_dir())


def _shards(index: Path, is_here: bool) -> list[Path]:
    """The files of an index: safetensors files beside it; `is_here`: they have to be there already."""
    content = read_object(index)
    names = content.get("weight_map")
    if not isinstance(names, dict) or not isinstance(content.get("metadata"), dict):
        raise ModelError(f"{index} is no index of weights: it needs the objects weight_map and metadata")
    shards = sorted({str(name) for name in names.values()})
    for shard in shards:
        if not _is_plain(shard) or not shard.endswith(".safetensors"):
            raise ModelError(f"{index} names {shard[:80]!r}: weights are read from safetensors files beside it only")
        if is_here and not (index.parent / shard).is_file():
            raise ModelError(f"{index} names {shard!r}, which is not there")
    return [index.parent / shard for shard in shards]


def _is_plain(name: str) -> bool:
    """Whether a name denotes a file in the same folder."""
    return Path(name).name == name and "\\" not in name and "\0" not in name


def stored_shapes(base: str | Path, named: str | None) -> dict[str, tuple[int, ...]] | None:
    """Tensor's name -> shape, over all weights of a base in a folder; None of one that is on the hub.

    Args:
        named: see `require_safetensors`, which has let it pass.

    Raises:
        ModelError: there are no weights, a file is cut off or no safetensors file, or holds something but floats.
    """
    folder = Path(base).expanduser()
    if not folder.is_dir():
        return None
    files = [folder / named] if named else [folder / _WHOLE]
    if files[0].name.endswith(".index.json") or not (named or files[0].is_file() or not (folder / INDEX).is_file()):
        files = _shards(files[0] if named else folder / INDEX, True)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= shapes_of(file)
    return shapes


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Tensor's name -> shape in a safetensors file, of which only the beginning is read.

    Raises:
        ModelError: it is missing, may not be read, is cut off or no safetensors file, or holds something but floats.
    """
    require_readable(file)
    if not file.is_file():
        raise ModelError(f"there are no weights in {str(file.parent)!r}: {file.name} is missing")
    try:
        with safe_open(file, framework="pt") as stored:
            names: list[str] = list(stored.keys())
            found = {name: stored.get_slice(name) for name in names}
            types = {name: part.get_dtype() for name, part in found.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in found.items()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} is damaged, or cut off: {one_line(error)}") from error
    others = sorted(name for name, kind in types.items() if kind not in _FLOATS)
    if others:
        raise ModelError(
            f"{file}: {others[0][:100]} is stored as {types[others[0]]}: quantized weights are not supported; floats "
            "(float16, bfloat16, float32) or a GGUF file are"
        )
    return shapes
