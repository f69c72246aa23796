"""The settings of a LoRA adapter, from its `adapter_config.json`, every one of them checked. No torch.

PEFT takes names of modules as regular expressions, settings that change the base's own weights, and keys that it does
not know. Here a setting is of its type and within its bounds, or the adapter is refused in one line; settings that are
not supported have to be off. What PEFT gets is made from the result, never the file itself.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfspan_core.errors import ModelError, brief
from selfspan_core.models.json_file import read_object

CONFIG = "adapter_config.json"
MOST_RANK = 1024
MOST_ALPHA = 1_000_000
MOST_NAMES = 4096
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_STARTS = (True, False, "gaussian", "orthogonal")
"""How LoRA's matrices may have begun; other ways (pissa, olora, corda, loftq ...) change the base's own weights."""
_IGNORED = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core", "peft_version"),
        *("qalora_group_size", "revision", "runtime_config", "ensure_weight_tying"),
    )
)
"""Settings that are of no matter for an adapter that is merged."""


@dataclass(frozen=True)
class AdapterConfig:
    """What decides how an adapter is merged.

    Attributes:
        rank, alpha: of every layer that the patterns do not name.
        target_modules: names of linear layers, or ends of their dotted names.
        exclude_modules: of those, which are left as they are.
        token_rows: embedding's module name -> ids whose rows are replaced; "" is the input embedding.
        rank_pattern, alpha_pattern: the same as rank and alpha for layers of that name, or end of a name.
        layers: numbers of the layers that have any; None: all.
        trained_on: the name of its base, as training wrote it; empty where it did not.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    exclude_modules: tuple[str, ...] = ()
    token_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    trained_on: str = ""

    def rank_of(self, module: str) -> int:
        """The rank of a layer by its dotted name; of several patterns the first one counts."""
        return next((rank for name, rank in self.rank_pattern.items() if ends_with(module, name)), self.rank)

    def adapts(self, module: str) -> bool:
        """Whether a linear layer of that dotted name has LoRA matrices."""
        if any(ends_with(module, name) for name in self.exclude_modules):
            return False
        if self.layers is not None:
            numbers = [int(part) for part in module.split(".") if part.isdecimal()]
            if not numbers or numbers[0] not in self.layers:
                return False
        return any(ends_with(module, name) for name in self.target_modules)


def ends_with(module: str, name: str) -> bool:
    """Whether a dotted name is that name, or ends with it."""
    return f".{module}".endswith(f".{name}")


def read_adapter_config(adapter: Path) -> AdapterConfig:
    """The settings of the adapter in a folder.

    Raises:
        ModelError: the file is missing or damaged, or holds a setting that is not supported.
    """
    file = adapter / CONFIG
    if not file.is_file():
        raise ModelError(f"the adapter {str(adapter)!r} has no {CONFIG}")
    content = read_object(file)

    def refuse(reason: str) -> ModelError:
        return ModelError(f"the adapter {str(adapter)!r} is damaged or not supported: {file.name}: {reason}")

    try:
        return _checked(dict(content))
    except _Wrong as error:
        raise refuse(str(error)) from error


class _Wrong(ValueError):
    """A setting is wrong; the message names it."""


def _checked(content: dict[str, Any]) -> AdapterConfig:
    if content.pop("peft_type", None) != "LORA":
        raise _Wrong("its peft_type is not LORA, and other kinds of adapters are not supported")
    _require(content.pop("task_type", None) in (None, "CAUSAL_LM"), "task_type", "CAUSAL_LM")
    start = content.pop("init_lora_weights", True)
    _require(
        any(start is known or (isinstance(start, str) and start == known) for known in _STARTS),
        "init_lora_weights",
        f"true, false, gaussian or orthogonal, not {brief(start)}: what starts otherwise (pissa, olora, corda, loftq) "
        "changes the base, too, and has to be converted to plain LoRA by PEFT first",
    )
    config = AdapterConfig(
        rank=_taken(content, "r", _rank, 8),
        alpha=_taken(content, "lora_alpha", _alpha, 8),
        target_modules=_taken(content, "target_modules", _names),
        exclude_modules=_taken(content, "exclude_modules", _names, ()),
        token_rows=_taken(content, "trainable_token_indices", _token_rows, {}),
        rank_pattern=_taken(content, "rank_pattern", lambda value, name: _pattern(value, name, _rank), {}),
        alpha_pattern=_taken(content, "alpha_pattern", lambda value, name: _pattern(value, name, _alpha), {}),
        layers=_taken(content, "layers_to_transform", _numbers, None),
        trained_on=_base_name(content.get("base_model_name_or_path")),
    )
    if not config.target_modules and not config.token_rows:
        raise _Wrong("target_modules names no layer")
    for name, value in content.items():
        # Every release of PEFT adds settings, all of them off unless they are asked for.
        is_off = value is None or value is False or value == "none" or value in ({}, [])
        _require(name in _IGNORED or is_off, name[:60], f"not supported here, and is {brief(value)}")
    return config


def _require(holds: bool, name: str, expected: str) -> None:
    if not holds:
        raise _Wrong(f"{name} is {expected}" if expected.startswith("not ") else f"{name} has to be {expected}")


def _taken(content: dict[str, Any], name: str, check: Callable[[Any, str], Any], default: Any = ()) -> Any:
    """A setting out of the content, checked; null is its default."""
    value = content.pop(name, None)
    return default if value is None else check(value, name)


def _base_name(value: Any) -> str:
    _require(value is None or isinstance(value, str), "base_model_name_or_path", "a name")
    return (value or "")[:200]


def _is_int(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _rank(value: Any, name: str) -> int:
    _require(_is_int(value, 1, MOST_RANK), name, f"a whole number from 1 to {MOST_RANK}, not {brief(value)}")
    return value


def _alpha(value: Any, name: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST_ALPHA
    _require(is_number and math.isfinite(value) and value > 0, name, f"a number above 0, not {brief(value)}")
    return value


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200 and _NAME.fullmatch(value) is not None


def _names(value: Any, name: str) -> tuple[str, ...]:
    are_names = isinstance(value, list) and len(value) <= MOST_NAMES and all(map(_is_name, value))
    _require(are_names, name, f"a list of names of modules (no pattern), not {brief(value)}")
    return tuple(value)


def _pattern(value: Any, name: str, check: Callable[[Any, str], Any]) -> dict[str, Any]:
    are_names = isinstance(value, dict) and len(value) <= MOST_NAMES and all(map(_is_name, value))
    _require(are_names, name, f"an object by names of modules (no pattern), not {brief(value)}")
    return {module: check(number, f"{name}.{module}") for module, number in value.items()}


def _numbers(value: Any, name: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    are_ids = all(_is_int(number, 0, 1 << 31) for number in values) and len(set(values)) == len(values)
    _require(are_ids, name, "a list of different whole numbers from 0 on")
    return tuple(values)


def _token_rows(value: Any, name: str) -> dict[str, tuple[int, ...]]:
    lists = value if isinstance(value, dict) else {"": value} if isinstance(value, list) else None
    are_lists = lists is not None and all(isinstance(rows, list) for rows in lists.values())
    _require(are_lists, name, "a list of token ids, or such lists by names of embeddings")
    _require(all(key == "" or _is_name(key) for key in lists or {}), name, "by names of embeddings")
    return {key: _numbers(rows, name) for key, rows in (lists or {}).items() if rows}
