"""Whether an adapter, its settings and a base belong together, and if not, which of the three is off."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from selfspan_core.errors import ModelError
from selfspan_core.models.adapter_config import CONFIG, AdapterConfig, ends_with

_PREFIX = "base_model.model."
_LORA = re.compile(r"\.lora_([AB])\.weight$")
_ROWS = ".token_adapter.trainable_tokens_delta"
Shapes = Mapping[str, tuple[int, ...]]


def require_fit(hf: PreTrainedModel, folder: Path, config: AdapterConfig, stored: Shapes, base: str | Path) -> None:
    """Refuse an adapter whose tensors are not those that its settings call for in this base.

    Args:
        hf: the base.
        folder: of the adapter, for messages.
        config: its settings.
        stored: tensor's name -> shape.
        base: name of the base in messages.

    Raises:
        ModelError: one line: it was made for another base, or its settings and tensors are not of one adapter.
    """
    trained_on = f" (it names {config.trained_on!r} as its base)" if config.trained_on else ""
    other = f"the adapter {str(folder)!r} was made for another base model than {str(base)!r}{trained_on}"
    damaged = f"the adapter {str(folder)!r} is damaged: {CONFIG} and its tensors are not of one adapter"
    embedding: Any = hf.get_input_embeddings()
    most = max((row for rows in config.token_rows.values() for row in rows), default=-1)
    if most >= embedding.weight.shape[0]:
        raise ModelError(f"{other}: it trains token {most} of a larger vocabulary")
    head: Any = hf.get_output_embeddings()
    if head.weight is embedding.weight and (config.adapts("lm_head") or "lm_head" in config.token_rows):
        raise ModelError(f"{other}: it changes lm_head, which in this base is one with the embedding")
    expected = _expected(hf, config)
    wrong = {name: shape for name, shape in expected.items() if stored.get(name, shape) != shape}
    features = [name for name, shape in wrong.items() if not _is_same_but_for_rank(name, stored[name], shape)]
    if features:
        name = min(features)
        raise ModelError(
            f"{other}: {len(features)} of its {len(expected)} tensors have another shape, {_short(name)} among them, "
            f"which is {list(stored[name])} and would have to be {list(expected[name])}"
        )
    linear = {name for name, module in hf.named_modules() if isinstance(module, torch.nn.Linear)}
    for target in config.target_modules:
        if not any(ends_with(name, target) for name in linear):
            raise ModelError(
                f"the adapter {str(folder)!r} cannot be used with {str(base)!r}: target_modules in {CONFIG}: "
                f"there is no module {target[:60]!r} with a matrix in the base"
            )
    if wrong:
        name = min(wrong)
        raise ModelError(f"{damaged}: {_which_rank(config, name, stored[name])}")
    _require_same_names(stored, expected, linear, other, damaged)


def _is_same_but_for_rank(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a tensor is for a layer of the base's size, with another rank or another number of tokens."""
    side = 0 if name.endswith("lora_B.weight") else 1
    return len(found) == 2 and found[side] == expected[side]


def _which_rank(config: AdapterConfig, name: str, found: tuple[int, ...]) -> str:
    kind = _LORA.search(name)
    if kind is None:
        num = next(len(rows) for key, rows in config.token_rows.items() if ends_with(_module(name), key) or key == "")
        return f"trainable_token_indices names {num} tokens, {_short(name)} has {found[0]}"
    module = _module(name)
    pattern = next((key for key in config.rank_pattern if ends_with(module, key)), None)
    key = "r" if pattern is None else f"rank_pattern.{pattern}"
    rank = found[0 if kind[1] == "A" else 1]
    return f"{key} is {config.rank_of(module)}, the tensors have rank {rank} ({_short(name)})"


def _require_same_names(stored: Shapes, expected: Shapes, linear: set[str], other: str, damaged: str) -> None:
    layers = {_layer(name) for name in stored}
    for name in sorted(stored.keys() - expected.keys()):
        if _module(name) in linear:
            raise ModelError(f"{damaged}: by its settings nothing takes {_short(name)}")
        raise ModelError(f"{other}: nothing takes {_short(name)}")
    for name in sorted(expected.keys() - stored.keys()):
        if _layer(name) in layers:
            raise ModelError(f"{damaged}: it lacks {_short(name)}")
        raise ModelError(f"{other}: it lacks {_short(name)}, and all of that layer")


def _expected(hf: PreTrainedModel, config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors that an adapter of these settings has for this base."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in hf.named_modules():
        if isinstance(module, torch.nn.Linear) and config.adapts(name):
            rank = config.rank_of(name)
            shapes[f"{_PREFIX}{name}.lora_A.weight"] = (rank, module.in_features)
            shapes[f"{_PREFIX}{name}.lora_B.weight"] = (module.out_features, rank)
        for key, rows in config.token_rows.items():
            is_meant = module is hf.get_input_embeddings() if key == "" else ends_with(name, key)
            if is_meant and isinstance(module, torch.nn.Embedding | torch.nn.Linear):
                shapes[f"{_PREFIX}{name}{_ROWS}"] = (len(rows), module.weight.shape[1])
    return shapes


def _module(name: str) -> str:
    """The module that a tensor is for."""
    return _LORA.sub("", name.removeprefix(_PREFIX)).removesuffix(_ROWS)


def _layer(name: str) -> str:
    """Number of the layer that a tensor is in; empty outside of all."""
    return next((part for part in name.split(".") if part.isdecimal()), "")


def _short(name: str) -> str:
    return name.removeprefix(_PREFIX)[:120]
