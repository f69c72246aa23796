"""Models as they are with weights and caches of fewer bits, for evaluation: every number is rounded to those that there
are, and computed with as before. So answers are those of such storage, and times are not.

Weights of 8 bits have one scale per row of a matrix, as `selfspan_core.models.int8_matrix` has them; of 4 bits one for
each 32 numbers of a row, as in GGUF's Q4_0, but for the output layer and the embedding that it shares, which keep 8.
Keys and values of 8 bits have one scale per token and head; in fp8 (e4m3, four bits of exponent) they have none. Scales
are floats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfspan_core.attention.readers import Reader
from selfspan_core.engine.host_step import HostStep
from selfspan_core.models.model import SpanModel
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.tracker import State

GROUP = 32
"""Numbers of a row that share a scale of 4 bits."""
LARGEST_FP8 = 448.0


@dataclass(frozen=True)
class Quantization:
    """How many bits.

    Attributes:
        weights: of a weight: 4, 8, or None for floats.
        cache: of keys and values: "int8", "fp8", or None for floats.
    """

    weights: int | None = None
    cache: str | None = None


QUANTIZATIONS = {
    "floats": Quantization(),
    "weights int8": Quantization(8),
    "weights int4": Quantization(4),
    "cache int8": Quantization(cache="int8"),
    "cache fp8": Quantization(cache="fp8"),
    "weights int4, cache int8": Quantization(4, "int8"),
}


def to_steps(x: torch.Tensor, largest: int) -> torch.Tensor:
    """The nearest of the numbers `-largest .. largest` times a scale, which the last axis's largest number sets."""
    wide = x.float()
    scale = (wide.abs().amax(-1, keepdim=True) / largest).clamp(min=1e-12)
    return ((wide / scale).round() * scale).to(x.dtype)


def rounded_weight(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """A matrix `[num_out, depth]` in 8 bits, or in 4 where the depth can be divided into groups.

    Raises:
        ValueError: it cannot.
    """
    if bits == 8:
        return to_steps(weight, 127)
    if weight.shape[1] % GROUP:
        raise ValueError(f"a depth of {weight.shape[1]} has no groups of {GROUP}")
    return to_steps(weight.unflatten(1, (-1, GROUP)), 7).flatten(1)


def rounded_cache(x: torch.Tensor, kind: str) -> torch.Tensor:
    """Keys or values `[..., head_dim]`, as a cache of that kind gives them back."""
    if kind == "int8":
        return to_steps(x, 127)
    return x.clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn).to(x.dtype)


class QuantizedReader:
    """A reader whose keys and values are rounded before they are stored and read; see `readers.Reader`.

    Args:
        reader: attends.
        kind: of the cache.
    """

    def __init__(self, reader: Reader, kind: str) -> None:
        self._reader, self._kind = reader, kind

    def plan(self, start: int, states: Sequence[State] | None) -> None:
        """See Reader."""
        self._reader.plan(start, states)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Reader."""
        key, value = rounded_cache(key, self._kind), rounded_cache(value, self._kind)
        return self._reader.attend(layer, query, key, value, scale)


class QuantizedModel(SpanModel):
    """A model with rounded weights, which asks for a rounded cache."""

    cache_kind: str | None = None

    def forward_argmax(self, ids: torch.Tensor, positions: torch.Tensor, reader: Reader) -> torch.Tensor:
        """See SpanModel."""
        return super().forward_argmax(ids, positions, self.reading(reader))

    def reading(self, reader: Reader) -> Reader:
        """A reader of this model's cache."""
        return reader if self.cache_kind is None else QuantizedReader(reader, self.cache_kind)


class QuantizedStep(HostStep):
    """Rows of a quantized model; see HostStep."""

    def __init__(self, model: QuantizedModel, markers: Markers, batch: int, capacity: int, is_dense: bool) -> None:
        super().__init__(model.weights, markers, batch, capacity, is_dense)
        self._quantized = model

    def new_reader(self, capacity: int) -> Reader:
        """See HostStep."""
        return self._quantized.reading(super().new_reader(capacity))


def load_quantized(
    base: str | Path, adapter: Path, device: str, dtype: torch.dtype, quantization: Quantization
) -> QuantizedModel:
    """A base with an adapter merged in, then rounded.

    Raises:
        ModelError: see `SpanModel.load`.
        ValueError: a matrix cannot be rounded so.
    """
    model = QuantizedModel.load(base, adapter, device, dtype)
    assert isinstance(model, QuantizedModel)
    model.cache_kind = quantization.cache
    if quantization.weights is not None:
        round_weights(model, quantization.weights)
    return model


@torch.no_grad()
def round_weights(model: SpanModel, bits: int) -> None:
    """Round every matrix where it lies; the output layer has 8 bits at least."""
    for module in model.hf.get_decoder().modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.copy_(rounded_weight(module.weight, bits))
    output: Any = model.hf.get_output_embeddings()
    output.weight.copy_(rounded_weight(output.weight, 8))
