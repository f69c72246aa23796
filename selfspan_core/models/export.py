"""Writes a base with an adapter merged in as one folder that other engines load: transformers' own layout.

Its config.json also names the marker ids (`marker_ids`), so that an engine can follow answers without a tokenizer, and
what was merged (`export_record`), so that whoever asks a server of it knows what it can be asked.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError

from cuda_kernels.bench.whole_file import move_into
from selfspan_core.errors import ModelError
from selfspan_core.models.export_record import KEY as RECORD_KEY
from selfspan_core.models.export_record import ExportRecord
from selfspan_core.models.marker_ids import CONFIG_KEY, said_in_config
from selfspan_core.models.model import SpanModel

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def export_merged(
    base: str | Path,
    adapter: str | Path | None,
    folder: str | Path,
    dtype: str = "bfloat16",
    record: ExportRecord | None = None,
) -> Path:
    """Write a merged model: weights as safetensors, tokenizer with the markers, settings.

    Args:
        base: a registered model, a folder, a GGUF file or a hub id.
        adapter: folder of a LoRA adapter; None for the base alone, whose markers mean nothing yet.
        folder: to be made; it must not exist, or be empty.
        dtype: of the weights, one of DTYPES.
        record: what it is made of, for whoever asks a server of the folder; None leaves that out.

    Returns:
        The folder.

    Raises:
        ModelError: base or adapter cannot be used, the dtype is unknown, or the folder cannot be written.
    """
    if dtype not in DTYPES:
        raise ModelError(f"the dtype is one of {', '.join(DTYPES)}, not {dtype!r}")
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ModelError(f"the folder {str(folder)!r} is not empty; name one that is to be made")
    model = SpanModel.load(base, adapter, dtype=DTYPES[dtype])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Nothing that is interrupted is ever served: without config.json a folder is none.
        with TemporaryDirectory(prefix=".unfinished-", dir=folder) as inside:
            _write(model, record, Path(inside))
            move_into(Path(inside), folder)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot write {str(folder)!r}: {getattr(error, 'strerror', None) or error}") from error
    return folder


def _write(model: SpanModel, record: ExportRecord | None, folder: Path) -> None:
    """All files of a folder. Raises OSError or SafetensorError."""
    tokenizer = model.tokenizer
    assert tokenizer is not None  # `load` makes one
    model.hf.save_pretrained(folder)
    tokenizer.hf.save_pretrained(folder)
    config = folder / "config.json"
    content = json.loads(config.read_text(encoding="utf-8")) | {CONFIG_KEY: said_in_config(tokenizer.markers)}
    content |= {} if record is None else {RECORD_KEY: record.to_config()}
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
