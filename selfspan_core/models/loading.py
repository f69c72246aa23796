"""A base model from its files, every setting, file and tensor checked before anything is built."""

import contextlib
import gc
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from selfspan_core.errors import ModelError
from selfspan_core.models.base_config import built_config, expected_shapes
from selfspan_core.models.json_file import one_line, read_object
from selfspan_core.models.model_names import why_not_found
from selfspan_core.models.weight_files import file_of, require_safetensors, stored_shapes
from selfspan_core.spans.protocol import MARKER_PIECES

if TYPE_CHECKING:
    from selfspan_core.models.tokenizer import SpanTokenizer

AS_STORED = "auto"
"""As a base's dtype: the one that its config.json names."""
ROWS_AT_A_TIME = 4096
"""Of an embedding, in float32."""
NOISE = 1e-9
"""Variance of new embedding rows over that of the old ones: they start at their mean, and no two are equal."""
MOST_NEW_ROWS = 1024
"""Beside those of the markers; a tokenizer with more ids than that belongs to another base."""


def load_base(base: str | Path, dtype: torch.dtype | str, attention: str) -> PreTrainedModel:
    """A base model from a folder or by hub id, safetensors only, with a named transformers attention.

    Args:
        base: folder or hub id.
        dtype: of the weights, or AS_STORED.
        attention: its name in transformers.

    Raises:
        ModelError: not found, incomplete, or of an architecture that is not supported.
    """
    require_base(base)
    config_file = file_of(base, "config.json")
    if config_file is None:
        raise ModelError(f"cannot load the base model {str(base)!r}: it has no config.json")
    content = read_object(config_file)
    config = built_config(content, str(base))
    named = content.get("transformers_weights")
    require_safetensors(base, named)
    try:
        stored = stored_shapes(base, named)
        if stored is not None:
            _require_all_tensors(base, config, _differences(stored, expected_shapes(config, str(base))))
        if named is not None:
            config.transformers_weights = named
        loaded = _load(base, config, dtype, attention)
    except ModelError:
        raise
    except RuntimeError as error:
        raise ModelError(f"{_do_not_fit(base)}: {one_line(error)}") from error
    except Exception as error:  # transformers raises errors of any type on files that it does not expect
        raise ModelError(f"cannot load the base model {str(base)!r}: {one_line(error)}") from error
    model, found = loaded
    _require_all_tensors(base, config, found)
    # Transformers leaves cycles that hold the files' tensors: until they are found, a model takes twice its memory.
    gc.collect()
    return model


def _load(base: str | Path, config: Any, dtype: torch.dtype | str, attention: str) -> tuple[PreTrainedModel, Mapping]:
    """The model, and what transformers says of tensors that did not fit."""
    with _no_bar_for_weights(base):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name
        )
    return loaded


def _differences(stored: Mapping[str, tuple], expected: Mapping[str, tuple]) -> dict[str, Collection]:
    """What `_require_all_tensors` takes, from the names and shapes in the files."""
    if not any(name.startswith("model.") for name in stored):  # saved without its head
        stored = {name if name == "lm_head.weight" else f"model.{name}": shape for name, shape in stored.items()}
    common = stored.keys() & expected.keys()
    return {
        "mismatched_keys": [(name, stored[name], expected[name]) for name in common if stored[name] != expected[name]],
        "missing_keys": expected.keys() - stored.keys(),
        "unexpected_keys": stored.keys() - expected.keys(),
    }


@contextlib.contextmanager
def _no_bar_for_weights(base: str | Path) -> Iterator[None]:
    """While it is open, transformers shows no progress of reading files that are here; it takes no argument for that.

    For a base on the hub the bars stay, since the download's is one of them.
    """
    if not Path(base).expanduser().is_dir() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _do_not_fit(base: str | Path) -> str:
    return f"the weights of the base model {str(base)!r} do not fit its config.json"


def _require_all_tensors(base: str | Path, config: Any, found: Mapping[str, Collection]) -> None:
    """Refuse a base whose files do not hold exactly the tensors of its configuration.

    Transformers would fill tensors that are missing or of another shape with random values, and only warn.
    """
    shapes = sorted((name, tuple(stored), tuple(asked)) for name, stored, asked in found["mismatched_keys"])
    if shapes:
        name, stored, asked = shapes[0]
        raise ModelError(
            f"{_do_not_fit(base)}: {len(shapes)} of the tensors have another shape, {name} among them, "
            f"which is {stored} and not {asked}"
        )
    harmless = ("rotary_emb.inv_freq", *(("lm_head.weight",) if config.tie_word_embeddings else ()))
    left_over = [name for name in found["unexpected_keys"] if not name.endswith(harmless)]
    for names, what in ((found["missing_keys"], "missing"), (left_over, "too many")):
        if names:
            raise ModelError(f"{_do_not_fit(base)}: {len(names)} of the tensors are {what}, {min(names)} among them")


def _num_rows(hf: PreTrainedModel) -> int:
    """Rows of a model's embedding."""
    embedding: Any = hf.get_input_embeddings()
    return embedding.weight.shape[0]


def resize_for_tokenizer(hf: PreTrainedModel, tokenizer: "SpanTokenizer") -> None:
    """Give every id of the tokenizer an embedding row; a base that has enough rows (or spare ones) is left alone.

    New rows are the mean of the old ones and a little noise, always the same: training and each serving process must
    start from one model. Transformers draws them from a normal distribution of the same mean and size, for which it
    computes the covariance of all rows, and needs four times the embedding's memory in float32.

    Raises:
        ModelError: the tokenizer has far more ids than the base has rows.
    """
    num_rows = tokenizer.vocab_size
    if num_rows <= _num_rows(hf):
        return
    if num_rows - _num_rows(hf) > len(MARKER_PIECES) + MOST_NEW_ROWS:
        raise ModelError(
            f"the tokenizer was made for another base model: its ids go up to {num_rows - 1}, and the base's embedding "
            f"has {_num_rows(hf)} rows"
        )
    embedding: Any = hf.get_input_embeddings()
    head: Any = hf.get_output_embeddings()
    is_tied = head.weight is embedding.weight
    embedding.weight = torch.nn.Parameter(_with_rows(embedding.weight.data, num_rows))
    head.weight = embedding.weight if is_tied else torch.nn.Parameter(_with_rows(head.weight.data, num_rows))
    embedding.num_embeddings = head.out_features = hf.config.vocab_size = num_rows
    hf.vocab_size = num_rows


def _with_rows(weight: torch.Tensor, num_rows: int) -> torch.Tensor:
    """A weight `[rows, width]` and new rows behind its own, `[num_rows, width]`."""
    num_old, width = weight.shape
    total, squares = (torch.zeros(width, device=weight.device) for _ in range(2))
    for block in weight.split(ROWS_AT_A_TIME):
        wide = block.float()
        total += wide.sum(0)
        squares += wide.square().sum(0)
    mean = total / num_old
    spread = (squares / num_old - mean.square()).clamp(min=0).sqrt()
    noise = torch.randn(num_rows - num_old, width, generator=torch.Generator().manual_seed(0)).to(weight.device)
    return torch.cat([weight, (mean + NOISE**0.5 * spread * noise).to(weight.dtype)])


def require_base(base: str | Path) -> None:
    """Raise an error for a missing folder, instead of asking the hub for a model of that name."""
    reason = why_not_found(base)
    if reason is not None:
        raise ModelError(reason)
