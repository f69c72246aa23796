"""The configuration of a base model, from its `config.json`, checked before anything is built from it.

Only the settings below reach transformers; each is of its type and within bounds that any published model keeps.
"""

import math
from collections.abc import Mapping
from typing import Any

from selfspan_core.errors import ModelError, brief
from selfspan_core.models.json_file import one_line

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_BOUNDS = {
    "vocab_size": (1, 1 << 21),
    "hidden_size": (2, 1 << 16),
    "intermediate_size": (1, 1 << 19),
    "num_hidden_layers": (1, 1024),
    "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024),
    "head_dim": (2, 1024),
    "max_position_embeddings": (1, 1 << 24),
    "original_max_position_embeddings": (1, 1 << 24),
    "sliding_window": (1, 1 << 24),
    "max_window_layers": (0, 1 << 24),
}
_TRUTHS = ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window")
_NUMBERS = {"rms_norm_eps": 1.0, "rope_theta": 1e12, "initializer_range": 10.0}
"""Settings that are above 0, and the most that each may be."""
_TYPES = ("float32", "float16", "bfloat16", "float64")
_LAYER_TYPES = ("full_attention", "sliding_attention")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("linear", "dynamic", "yarn"), ("factor",)),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_MOST_FACTORS = 1024
_NOT_NULL = frozenset(_BOUNDS) - {"num_key_value_heads", "head_dim", "sliding_window"}


def checked_config(content: Mapping[str, Any], base: str, said_by: str = "config.json") -> dict[str, Any]:
    """The settings of a base that decide how it computes, as keyword arguments of its transformers configuration.

    Args:
        content: of its config.json.
        base: its name, for messages.
        said_by: what the settings come from, for messages.

    Raises:
        ModelError: the model is of another family, quantized, or a setting is not what it has to be; one line.
    """
    kind = content.get("model_type")
    if kind not in FAMILIES:
        raise ModelError(f"{base}: models of type {brief(kind)} are not supported; {', '.join(FAMILIES)} are")
    method = content.get("quantization_config")
    if method is not None:
        name = method.get("quant_method") if isinstance(method, dict) else None
        raise ModelError(
            f"{base}: its weights are quantized (quantization_config in config.json: {brief(name or 'unknown method')})"
            ", which is not supported; the same model in float16, bfloat16 or float32, or as a GGUF file, is"
        )
    try:
        return _kept(content)
    except _Wrong as error:
        raise ModelError(f"cannot load the base model {base!r}: its {said_by} is damaged: {error}") from error


def built_config(content: Mapping[str, Any], base: str, said_by: str = "config.json") -> Any:
    """Transformers' configuration of a base, made of checked settings alone.

    Args:
        content, base, said_by: see `checked_config`.

    Raises:
        ModelError: the same, or transformers finds sizes that do not go together.
    """
    from transformers import AutoConfig

    kept = checked_config(content, base, said_by)
    try:
        # For the families, whose code is transformers' own; no code of a model's folder is ever run.
        return AutoConfig.for_model(content["model_type"], **kept)
    except Exception as error:  # transformers raises errors of several types
        raise ModelError(f"cannot load the base model {base!r}: its {said_by} is damaged: {one_line(error)}") from error


class _Wrong(ValueError):
    """A setting is wrong; the message names it."""


def _kept(content: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, (least, most) in _BOUNDS.items():
        _keep(content, kept, name, _is_int(content.get(name), least, most), f"a whole number from {least} to {most}")
    for name in _TRUTHS:
        _keep(content, kept, name, isinstance(content.get(name), bool), "true or false")
    for name, limit in _NUMBERS.items():
        is_right = _is_number(content.get(name)) and 0 < content[name] <= limit
        _keep(content, kept, name, is_right, f"a number above 0, at most {limit:g}")
    act = content.get("hidden_act")
    _keep(content, kept, "hidden_act", isinstance(act, str) and act.isidentifier() and len(act) < 40, "a name")
    for name in ("dtype", "torch_dtype"):
        _keep(content, kept, name, content.get(name) in _TYPES, " or ".join(_TYPES))
    types, num = content.get("layer_types"), kept.get("num_hidden_layers", 0)
    are_known = isinstance(types, list) and len(types) == num and all(one in _LAYER_TYPES for one in types)
    _keep(content, kept, "layer_types", are_known, f"one of {' and '.join(_LAYER_TYPES)} for each layer")
    for name in ("rope_parameters", "rope_scaling"):
        if content.get(name) is not None:
            kept[name] = _rope(content[name], name)
    if content.get("partial_rotary_factor") not in (None, 1):
        raise _Wrong("partial_rotary_factor is not supported")
    for name in _TOKENS:
        _keep_token(content, kept, name)
    return kept


def _keep(content: Mapping[str, Any], kept: dict[str, Any], name: str, is_right: bool, expected: str) -> None:
    """Keep a setting that is there; null where it means something is kept, too."""
    if name not in content or (content[name] is None and name not in _NOT_NULL):
        if name in content and name == "sliding_window":
            kept[name] = None
        return
    if not is_right:
        raise _Wrong(f"{name} has to be {expected}, not {brief(content[name])}")
    kept[name] = content[name]


def _keep_token(content: Mapping[str, Any], kept: dict[str, Any], name: str) -> None:
    """Ids are the tokenizer's business; those outside the vocabulary (-1 is used for none) are left out."""
    value = content.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(_is_int(token, -1, 1 << 31) for token in ids):
        raise _Wrong(f"{name} has to be a token's id, not {brief(value)}")
    inside = [token for token in ids if 0 <= token < kept.get("vocab_size", 0)]
    # A default of the family would be another model's id.
    kept[name] = inside[0] if len(inside) == 1 else (inside or None) if name == "eos_token_id" else None


def _rope(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong(f"{name} has to be an object, not {brief(value)}")
    kind = value.get("rope_type", value.get("type", "default"))
    if kind not in _ROPES:
        raise _Wrong(f"{name} is of type {brief(kind)}, and supported are {', '.join(_ROPES)}")
    for key, one in value.items():
        numbers = one if isinstance(one, list) and len(one) <= _MOST_FACTORS else [one]
        is_name = key in ("rope_type", "type")
        if not (is_name or one is None or isinstance(one, bool) or all(_is_number(n) and n > 0 for n in numbers)):
            raise _Wrong(f"{name}: {key[:60]} has to be a number above 0, not {brief(one)}")
    if value.get("partial_rotary_factor") not in (None, 1):
        raise _Wrong(f"{name}: partial_rotary_factor is not supported")
    for key in _NEEDED.get(kind, ()):
        if value.get(key) is None:
            raise _Wrong(f"{name}: of type {kind} it needs {key}")
    return {key: one for key, one in value.items() if one is not None}


def _is_int(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30 and math.isfinite(value)


def expected_shapes(config: Any, base: str, said_by: str = "config.json") -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a base of this configuration has.

    Args:
        config: transformers' configuration, its family's defaults filled in.
        base, said_by: see `checked_config`.

    Raises:
        ModelError: its sizes do not go together.
    """
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    kv_heads = config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    for is_wrong, why in (
        (heads % kv_heads, f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"),
        (head_dim % 2 or not head_dim, f"a head has {head_dim} dimensions, which rope cannot turn in pairs"),
    ):
        if is_wrong:
            raise ModelError(f"cannot load the base model {base!r}: its {said_by} is damaged: {why}")
    queries, keys = heads * head_dim, kv_heads * head_dim
    matrices = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    has_bias = getattr(config, "attention_bias", False)
    biased = [name for name in matrices if name[-6:] in ("q_proj", "k_proj", "v_proj") and config.model_type == "qwen2"]
    biased += [name for name in matrices if has_bias and name.startswith("self_attn") and config.model_type != "qwen2"]
    biased += [name for name in matrices if getattr(config, "mlp_bias", False) and name.startswith("mlp")]
    layer: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in matrices.items()}
    layer |= {f"{name}.bias": matrices[name][:1] for name in biased}
    layer |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    if config.model_type == "qwen3":
        layer |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for number in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes
