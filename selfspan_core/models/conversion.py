"""GGUF files become folders of safetensors once, in the user's cache; from then on they load like any other base.

The cache is SELFSPAN_CACHE, or `selfspan` in the user's cache folder. A folder gets its name when it is complete: what
an interrupted conversion leaves is deleted by the next one. A second process waits for the first.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file

from cuda_kernels.bench.whole_file import make_usual
from selfspan_core.errors import ModelError
from selfspan_core.models.gguf_file import GgufFile
from selfspan_core.models.gguf_fit import require_fit
from selfspan_core.models.gguf_tokenizer import tokenizer_of

FORMAT = 2
"""Of converted folders; a new one makes old ones be converted again."""
SHARD_BYTES = 1 << 26
"""Loading maps these files into memory, and can let go of each as soon as its tensors have been taken over."""
NAMES_BYTES = 16
"""Of a hash, in hex digits, that names a folder."""
_WEIGHTS = "model.safetensors"


def cache_folder() -> Path:
    """Where converted models are kept."""
    named = os.environ.get("SELFSPAN_CACHE")
    if named:
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "selfspan"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "selfspan"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfspan"


def folder_of(key: str) -> Path:
    """Where the model with this key lies once it is converted."""
    return cache_folder() / "bases" / f"{key}-{FORMAT}"


def key_of_file(file: Path) -> str:
    """A key for a user's own file: by its path, size and time, since reading all of a large one takes long."""
    facts = file.stat()
    text = f"{file.resolve()}|{facts.st_size}|{facts.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:NAMES_BYTES]


def converted(file: Path, key: str) -> Path:
    """The folder of a GGUF file's model, made now if it is not there yet. Shows a progress bar while it works.

    Raises:
        ModelError: the file cannot be used, or the cache cannot be written.
    """
    folder = folder_of(key)
    if folder.is_dir():
        return folder
    opened = GgufFile(file)
    require_fit(opened)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder), _removing(folder.with_name(f"{folder.name}.unfinished")) as unfinished:
            if not folder.is_dir():
                _convert(opened, unfinished)
                unfinished.rename(folder)
    except OSError as error:
        raise ModelError(
            f"cannot keep the converted model {file.name} in {folder.parent}: {error}; SELFSPAN_CACHE names another"
        ) from error
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Held by one process at a time; the others wait, and say so."""
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that converts {folder.name}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _removing(unfinished: Path) -> Iterator[Path]:
    """A new folder to work in; whatever is left of it is deleted, and so is what a killed process left."""
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _convert(opened: GgufFile, folder: Path) -> None:
    from tqdm import tqdm

    config = opened.config() | {"dtype": "float16"}
    tokenizer_of(opened).save_pretrained(str(folder))
    total = sum(map(math.prod, opened.shapes.values()))
    with tqdm(total=total, unit="weights", unit_scale=True, desc=f"converting {opened.path.name}, once") as bar:
        index = _save(opened, folder, lambda tensor: bar.update(tensor.numel()))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if index is not None:
        (folder / f"{_WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _save(opened: GgufFile, folder: Path, done: Callable[[torch.Tensor], object]) -> dict[str, Any] | None:
    """Write the tensors, in several files if they are many; returns the index of these, None of a single file."""
    shards: list[list[str]] = []
    waiting: dict[str, torch.Tensor] = {}
    size = total = 0

    def flush() -> None:
        save_file(waiting, folder / f"shard-{len(shards)}.safetensors", metadata={"format": "pt"})
        make_usual([folder / f"shard-{len(shards)}.safetensors"])
        shards.append(list(waiting))
        waiting.clear()

    for name, tensor in opened.tensors():
        size += tensor.nbytes
        total += tensor.nbytes
        waiting[name] = tensor
        done(tensor)
        if size >= SHARD_BYTES:
            flush()
            size = 0
    if waiting or not shards:
        flush()
    if len(shards) == 1:
        (folder / "shard-0.safetensors").rename(folder / _WEIGHTS)
        return None
    names = {name: f"shard-{number}.safetensors" for number, shard in enumerate(shards) for name in shard}
    return {"metadata": {"total_size": total}, "weight_map": names}
