"""Weights from files: a base model and an adapter merged into it, every file and tensor checked before it is used.

Weights are read from safetensors only. A pickle runs code when it is loaded, and transformers can be led
to one in several ways (an index, a line of `config.json`, an adapter beside the base): each is refused here with a
one-line error.
"""

import contextlib
import gc
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file, logging

from selfspan_core.errors import ModelError
from selfspan_core.models.model_names import why_not_found

if TYPE_CHECKING:
    from selfspan_core.models.tokenizer import SpanTokenizer

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
INDEX = "model.safetensors.index.json"


AS_STORED = "auto"
"""As a base's dtype: the one that its config.json names."""
ROWS_AT_A_TIME = 4096
"""Of an embedding, in float32."""
NOISE = 1e-9
"""Variance of new embedding rows over that of the old ones: they start at their mean, and no two are equal."""


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
    try:
        config = AutoConfig.from_pretrained(base)
        if config.model_type not in FAMILIES:
            raise ModelError(
                f"{base}: models of type {config.model_type!r} are not supported; {', '.join(FAMILIES)} are"
            )
        _require_safetensors(base, getattr(config, "transformers_weights", None))
        with _no_bar_for_weights(base):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                base,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except ModelError:
        raise
    except RuntimeError as error:
        raise ModelError(f"{_do_not_fit(base)}: {error}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"cannot load the base model {str(base)!r}: {error}") from error
    model, found = loaded  # because of `output_loading_info`
    _require_all_tensors(base, config, found)
    # Transformers leaves cycles that hold the files' tensors: until they are found, a model takes twice its memory.
    gc.collect()
    return model


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


def _require_safetensors(base: str | Path, named: object) -> None:
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
    if _file_of(base, "adapter_config.json") is not None:
        raise ModelError(f"{str(base)!r} holds an adapter (adapter_config.json), and is no base model")
    index = _file_of(base, named if isinstance(named, str) and named.endswith(".index.json") else INDEX)
    if index is not None:
        _require_index(index, Path(base).expanduser().is_dir())


def _require_index(index: Path, is_here: bool) -> None:
    """Refuse an index that names anything but safetensors files beside it; `is_here`: they have to be there already."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        shards = set(content["weight_map"].values())
        if not isinstance(content["metadata"], dict):
            raise TypeError("metadata is no object")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is no index of weights: {error!r}") from error
    for shard in sorted(map(str, shards)):
        if not _is_plain(shard) or not shard.endswith(".safetensors"):
            raise ModelError(f"{index} names {shard[:80]!r}: weights are read from safetensors files beside it only")
        if is_here and not (index.parent / shard).is_file():
            raise ModelError(f"{index} names {shard!r}, which is not there")


def _is_plain(name: str) -> bool:
    """Whether a name denotes a file in the same folder."""
    return Path(name).name == name and "\\" not in name


def _file_of(base: str | Path, name: str) -> Path | None:
    """A file of a base, downloaded if the base is on the hub; None if the base has no such file."""
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        found = cached_file(str(base), name)
    except OSError:  # the hub has no such file or cannot be reached: then it cannot provide the weights either
        return None
    return None if found is None else Path(found)


def _num_rows(hf: PreTrainedModel) -> int:
    """Rows of a model's embedding."""
    embedding: Any = hf.get_input_embeddings()
    return embedding.weight.shape[0]


def resize_for_tokenizer(hf: PreTrainedModel, tokenizer: "SpanTokenizer") -> None:
    """Give every id of the tokenizer an embedding row; a base that has enough rows (or spare ones) is left alone.

    New rows are the mean of the old ones and a little noise, always the same: training and each serving process must
    start from one model. Transformers draws them from a normal distribution of the same mean and size, for which it
    computes the covariance of all rows, and needs four times the embedding's memory in float32.
    """
    num_rows = tokenizer.vocab_size
    if num_rows <= _num_rows(hf):
        return
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


def merge_adapter(hf: PreTrainedModel, adapter: Path, base: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model with a LoRA adapter merged into its weights: in float32, one matrix after the other, rounded once.

    Args:
        hf: the base, resized for its tokenizer; changed in place.
        adapter: folder of the adapter.
        base: name of the base in messages.
        dtype: that all weights get.

    Raises:
        ModelError: the adapter is incomplete, damaged, or made for another base.
    """
    from peft import PeftModel, get_peft_model_state_dict

    weights, config_file = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    for file in (weights, config_file):
        if not file.is_file():
            raise ModelError(f"the adapter {str(adapter)!r} has no {file.name}")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        rows = _trained_rows(config)
        with safe_open(weights, framework="pt") as stored:
            stored_names = set(stored.keys())
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"the adapter {str(adapter)!r} is damaged: {error}") from error
    made_for_another = f"the adapter {str(adapter)!r} was made for another base model than {str(base)!r}"
    if rows and max(rows) >= _num_rows(hf):
        raise ModelError(f"{made_for_another}: it trains token {max(rows)} of a larger vocabulary")
    try:
        wrapped = PeftModel.from_pretrained(hf, adapter)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{made_for_another}: {error}") from error
    # PEFT only warns about missing weights, and drops unknown ones.
    expected_names = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    for name in sorted(expected_names ^ stored_names):
        raise ModelError(f"{made_for_another}: {'it lacks' if name in expected_names else 'nothing takes'} {name}")
    try:
        _merge_in_place(wrapped, dtype)
    except ValueError as error:
        raise ModelError(f"the adapter {str(adapter)!r} cannot be used: {error}") from error
    merged: Any = wrapped
    return merged.unload()


def _merge_in_place(wrapped: torch.nn.Module, dtype: torch.dtype) -> None:
    """Merge every layer that PEFT adapted; no more than one matrix is in float32 at a time.

    Raises:
        ValueError: a sum is not finite.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    # Layer by layer, norms among them: what is done no longer needs the file that it was read from.
    for name, module in wrapped.named_modules():
        if isinstance(module, LoraLayer | TrainableTokensLayer):
            weight: Any = module.get_base_layer().weight
            # Rows that an adapter replaces are copied, not added: they need no float32, and an embedding is large.
            weight.data = weight.data.to(torch.float32 if isinstance(module, LoraLayer) else dtype)
            module.merge()
            # A sum is finite if all its terms are; PEFT's own check makes a copy and a mask of every matrix.
            if not bool(weight.data.sum(dtype=torch.float32).isfinite()):
                raise ValueError(f"merged into {name}, it gives numbers that are not finite")
            weight.data = weight.data.to(dtype)
        # Parameters alone: `hf.to(dtype)` would round the rotary frequencies, which are a buffer, too.
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)


def _trained_rows(adapter_config: object) -> list[int]:
    """Token ids whose embeddings an adapter replaces (a list, or lists by layer name).

    Raises:
        ValueError: this is no configuration of a LoRA adapter.
    """
    if not isinstance(adapter_config, dict) or adapter_config.get("peft_type") != "LORA":
        raise ValueError("its configuration is not that of a LoRA adapter")
    indices = adapter_config.get("trainable_token_indices") or []
    lists = list(indices.values()) if isinstance(indices, dict) else [indices]
    if not all(isinstance(rows, list) and all(isinstance(row, int) for row in rows) for rows in lists):
        raise ValueError("trainable_token_indices holds something other than token ids")
    return [row for rows in lists for row in rows]
