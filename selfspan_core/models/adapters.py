"""A LoRA adapter merged into a base: its settings and the shapes of its tensors are compared before PEFT builds any."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from selfspan_core.errors import ModelError
from selfspan_core.models.adapter_config import AdapterConfig, read_adapter_config
from selfspan_core.models.adapter_fit import require_fit
from selfspan_core.models.json_file import one_line, require_readable
from selfspan_core.models.weight_files import shapes_of

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter's folder, read as far as that is cheap: its settings, and tensor's name -> shape of its weights."""

    folder: Path
    config: AdapterConfig
    shapes: Mapping[str, tuple[int, ...]]


def read_adapter(adapter: str | Path) -> AdapterFiles:
    """What an adapter's files say of it; no weights are read.

    Raises:
        ModelError: a file is missing or damaged, or the adapter has something that is not supported.
    """
    folder = Path(adapter)
    require_readable(folder / WEIGHTS)
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"the adapter {str(folder)!r} has no {WEIGHTS}")
    config = read_adapter_config(folder)
    try:
        return AdapterFiles(folder, config, shapes_of(folder / WEIGHTS))
    except ModelError as error:
        raise ModelError(f"the adapter {str(folder)!r} is damaged: {error}") from error


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
    from peft import get_peft_model_state_dict

    files = read_adapter(adapter)
    require_fit(hf, files.folder, files.config, files.shapes, base)
    try:
        with expected_of_peft():
            wrapped = _wrapped(hf, files)
        # A second look at what the first one ruled out: PEFT only warns about missing weights, and drops unknown ones.
        for name in sorted(set(get_peft_model_state_dict(wrapped, save_embedding_layers=False)) ^ files.shapes.keys()):
            raise ValueError(f"PEFT takes other tensors than it has, {name} among them")
        _merge_in_place(wrapped, dtype)
    except Exception as error:  # PEFT raises errors of any type on what it does not expect
        raise ModelError(f"the adapter {str(adapter)!r} cannot be used: {one_line(error)}") from error
    merged: Any = wrapped
    return merged.unload()


@contextmanager
def expected_of_peft() -> Iterator[None]:
    """While it is open, PEFT's question for an attribute that transformers has renamed makes no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def _wrapped(hf: PreTrainedModel, files: AdapterFiles) -> torch.nn.Module:
    """The model with PEFT's layers; their settings are made from the checked ones, not read by PEFT."""
    from peft import LoraConfig, PeftModel

    config = files.config
    rows = {name: list(ids) for name, ids in config.token_rows.items()}
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT divides by it, nothing else
        target_modules=list(config.target_modules),
        exclude_modules=list(config.exclude_modules) or None,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
        layers_to_transform=None if config.layers is None else list(config.layers),
        trainable_token_indices=(rows.get("", rows) or None),
    )
    return PeftModel.from_pretrained(hf, files.folder, config=lora)


def _require_finite(weight: torch.Tensor, what: str) -> None:
    # A sum is finite if all its terms are; PEFT's own check makes a copy and a mask of every matrix.
    if not bool(weight.data.sum(dtype=torch.float32).isfinite()):
        raise ValueError(f"{what} numbers that are not finite")


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
            _require_finite(weight, f"merged into {name}, it gives")
            weight.data = weight.data.to(dtype)
        elif "norm" in name or name.endswith("embed_tokens"):
            for parameter in module.parameters(recurse=False):
                _require_finite(parameter, f"the base's {name} has")
        # Parameters alone: `hf.to(dtype)` would round the rotary frequencies, which are a buffer, too.
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)
