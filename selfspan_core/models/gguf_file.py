"""A GGUF file of the Llama family: its configuration and its tensors under the names that transformers uses.

The file is only read; what is in it may come from anybody, so everything that a model is built from is checked and a
file that does not fit is refused with one line. Quantized tensors become floats by the package `gguf`.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from selfspan_core.errors import ModelError, ModelUnavailable
from selfspan_core.models.gguf_header import Header, TensorPlace, WrongHeader, read_header
from selfspan_core.models.json_file import require_readable

# Architecture in the file -> model type and class of transformers. Mistral's files call themselves llama, too.
ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FREQUENCIES = "rope_freqs.weight"
# Llama 3.1 and later stretch low frequencies. Files hold the resulting factors, not the settings; all published models
# of the family have these, but for the factor.
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class GgufFile:
    """A file, opened; tensors stay on disk until they are asked for.

    Args:
        path: of the file.

    Attributes:
        architecture: a key of ARCHITECTURES.

    Raises:
        ModelError: this is no GGUF file, it is damaged or cut off, its architecture is not supported, or nothing here
            reads it.
    """

    def __init__(self, path: Path) -> None:
        gguf = _package(path)
        self.path = path
        require_readable(path)
        try:
            self._header = read_header(path)
            self._num_bytes = _sizes(gguf, self._header)
        except (OSError, WrongHeader) as error:
            raise ModelError(f"{path} is no GGUF file, or is damaged: {error}") from error
        self.architecture: str = self.field("general.architecture", str)
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ModelError(f"{path}: models of type {self.architecture[:40]!r} are not supported; {known} are")
        self._tensors = self._header.places
        self._require(ROPE_FREQUENCIES in self._tensors or not self._scales_rope(), "its rope scaling is not supported")

    def field(self, key: str, kind: type, default: Any = None) -> Any:
        """A value of the file's metadata; `{arch}` in the key stands for the architecture.

        Raises:
            ModelError: it is missing and has no default, or is of another kind.
        """
        key = key.replace("{arch}", getattr(self, "architecture", ""))
        value = self._header.fields.get(key)
        if value is None:
            self._require(default is not None, f"it lacks {key}")
            return default
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if kind is float and isinstance(value, int):
            value = float(value)
        self._require(isinstance(value, kind), f"its {key} is of the wrong kind")
        return value

    def config(self) -> dict[str, Any]:
        """What stands in the `config.json` of a transformers model.

        Raises:
            ModelError: a value is missing, or the model has something that is not supported.
        """
        model_type, model_class = ARCHITECTURES[self.architecture]
        heads, hidden = self.field("{arch}.attention.head_count", int), self.field("{arch}.embedding_length", int)
        self._require(heads > 0 and hidden > 0 and self._tensors.get("token_embd.weight") is not None, "it is empty")
        config = {
            "architectures": [model_class],
            "model_type": model_type,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": self.field("{arch}.feed_forward_length", int),
            "num_hidden_layers": self.field("{arch}.block_count", int),
            "num_attention_heads": heads,
            "num_key_value_heads": self.field("{arch}.attention.head_count_kv", int, heads),
            "head_dim": self.field("{arch}.attention.key_length", int, hidden // heads),
            "max_position_embeddings": self.field("{arch}.context_length", int),
            "rms_norm_eps": self.field("{arch}.attention.layer_norm_rms_epsilon", float),
            "rope_parameters": self._rope(),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "vocab_size": self._tensors["token_embd.weight"].shape[0],
            "bos_token_id": self.field("tokenizer.ggml.bos_token_id", int, -1),
            "eos_token_id": self.field("tokenizer.ggml.eos_token_id", int),
        }
        return {key: None if value == -1 else value for key, value in config.items()}

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor by transformers' name: matrices as float16, vectors as float32.

        Raises:
            ModelError: a tensor is not known, is of an unknown type, or has values that float16 cannot hold.
        """
        config = self.config()
        for name, stored in self._tensors.items():
            if name == ROPE_FREQUENCIES:
                continue
            values = self._floats(stored)
            own_name = self._own_name(name)
            if self.architecture == "llama" and own_name.endswith(("q_proj.weight", "k_proj.weight")):
                is_query = own_name.endswith("q_proj.weight")
                heads = config["num_attention_heads" if is_query else "num_key_value_heads"]
                values = self._without_interleaving(name, values, heads)
            tensor = torch.from_numpy(np.array(values))  # a copy: what the file maps cannot be written to
            if tensor.ndim > 1:
                tensor = tensor.half()
                self._require(bool(tensor.isfinite().all()), f"its tensor {name} exceeds the range of float16")
            yield own_name, tensor

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by transformers' name of every tensor that `tensors` yields.

        Raises:
            ModelError: a tensor is not known, or there is another of its name.
        """
        kept = [tensor for name, tensor in self._tensors.items() if name != ROPE_FREQUENCIES]
        shapes = {self._own_name(tensor.name): tensor.shape for tensor in kept}
        self._require(len(shapes) == len(kept), "two of its tensors are one and the same of the model")
        return shapes

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(self._num_bytes.values())

    def _floats(self, stored: TensorPlace) -> np.ndarray:
        gguf = _package(self.path)
        kind, begin = gguf.GGMLQuantizationType(stored.kind), self._header.data_offset + stored.offset
        data = np.frombuffer(self._header.data, np.uint8, self._num_bytes[stored.name], begin)
        try:
            # Of all types, quantized or not, the package takes the bytes of each row.
            with np.errstate(all="ignore"):  # numbers that are not finite are refused where they are used
                return gguf.quants.dequantize(data.reshape(*stored.shape[:-1], -1), kind)
        except (NotImplementedError, ValueError, KeyError) as error:
            raise ModelError(f"{self.path}: tensors of type {kind.name} cannot be read: {error}") from error

    def _own_name(self, name: str) -> str:
        if name in _OUTSIDE:
            return _OUTSIDE[name]
        block, _, rest = name.partition(".")
        number, _, part = rest.partition(".")
        part, _, kind = part.rpartition(".")
        is_known = (
            block == "blk"
            and number.isdecimal()
            and len(number) < 6
            and part in _IN_LAYER
            and kind in ("weight", "bias")
        )
        self._require(is_known, f"its tensor {name[:60]!r} is not of a supported model")
        return f"model.layers.{int(number)}.{_IN_LAYER[part]}.{kind}"

    def _without_interleaving(self, name: str, values: np.ndarray, heads: int) -> np.ndarray:
        """Rows of a head in transformers' order: llama.cpp puts the two halves that rope turns beside each other."""
        self._require(heads > 0 and len(values) % (2 * heads) == 0, f"its tensor {name} does not fit its heads")
        by_head = values.reshape(heads, len(values) // heads // 2, 2, *values.shape[1:])
        return by_head.swapaxes(1, 2).reshape(values.shape)

    def _scales_rope(self) -> bool:
        return self.field("{arch}.rope.scaling.type", str, "none") != "none"

    def _rope(self) -> dict[str, Any]:
        """Rope's parameters, those of Llama 3.1 recovered from the factors that a file has.

        Raises:
            ModelError: the factors are those of another kind of scaling.
        """
        theta = self.field("{arch}.rope.freq_base", float, 10000.0)
        plain = {"rope_type": "default", "rope_theta": theta}
        if ROPE_FREQUENCIES not in self._tensors:
            return plain
        stored = np.asarray(self._floats(self._tensors[ROPE_FREQUENCIES]), np.float64)
        scaled = {**plain, **LLAMA3_ROPE, "rope_type": "llama3", "factor": float(stored.max())}
        expected = _llama3_factors(2 * len(stored), scaled)
        self._require(
            stored.ndim == 1 and bool(np.allclose(stored, expected, rtol=1e-3)), "its rope scaling is not supported"
        )
        return scaled

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise ModelError(f"{self.path}: {what}")


def _package(path: Path) -> ModuleType:
    """The package `gguf`, imported when a file is read and not before."""
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise ModelUnavailable(f"{path.name} is a GGUF file, which the package gguf reads: pip install gguf") from error


def _sizes(gguf: ModuleType, header: Header) -> dict[str, int]:
    """Bytes of every tensor by its name in the file.

    Raises:
        WrongHeader: a type is unknown, or a tensor lies in another one or behind the end of the file.
    """
    sizes: dict[str, int] = {}
    end, before = 0, ""
    for place in sorted(header.places.values(), key=lambda place: place.offset):
        what = f"the tensor {place.name[:60]!r}"
        try:
            num_values, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(place.kind)]
        except (ValueError, KeyError) as error:
            raise WrongHeader(f"{what} is of type {place.kind}, which is not known") from error
        if place.shape[-1] % num_values:
            raise WrongHeader(f"{what} has rows of {place.shape[-1]} values, which is no multiple of {num_values}")
        sizes[place.name] = size = place.num_elements // num_values * num_bytes
        if place.offset < end:
            raise WrongHeader(f"{what} begins inside the tensor {before[:60]!r}")
        end, before = place.offset + size, place.name
        if header.data_offset + end > len(header.data):
            raise WrongHeader(f"{what} ends behind the end of the file")
    return sizes


def _llama3_factors(rotary_dim: int, rope: dict[str, Any]) -> np.ndarray:
    """By what Llama 3.1 divides each frequency of rope."""
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, rotary_dim, 2) / rotary_dim)
    original, low, high = (
        rope[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / rope["factor"] + smooth)
