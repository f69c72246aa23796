"""One decode step of a Llama-family model, written out: one token per row, nothing decided on the host.

Transformers' own forward takes some thirty small operations a layer, and its shapes change from token to token. Here
shapes are fixed, everything that changes lies in tensors, and what lies between the matrix products is a handful of
operations (`StepOps`): CUDA kernels on a GPU, PyTorch's own elsewhere. So a step can be captured in a CUDA graph.
Values are rounded where transformers rounds them.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.models.model import SpanModel
from selfspan_core.models.weights import DecodeWeights, Layer, Matrix

Apply = Callable[[torch.Tensor], torch.Tensor]
"""`[B, depth]` -> `[B, num_out]`."""
ApplyGated = Callable[[torch.Tensor, torch.Tensor], None]
"""`[B, depth]`, and where the result goes, `[B, num_out / 2]`."""
Attend = Callable[[int, torch.Tensor], torch.Tensor]
"""(layer, query `[B, H, D]`) -> attention's output `[B, H, D]`, over what each row sees of the cache."""


class StepOps(Protocol):
    """A step's operations beside attention; see `cuda_kernels.layers.DecodeOps` for shapes."""

    def bind(self, matrix: Matrix) -> Apply:
        """What `matrix.apply` computes, by the best that this device has for it."""
        ...

    def bind_gated(self, matrix: Matrix) -> ApplyGated:
        """`silu(gate) * up` of what `matrix.apply` computes; the first half of the matrix's rows are the gate's."""
        ...

    def add_rms_norm(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor | None,
        weight: torch.Tensor,
        epsilon: float,
        out: torch.Tensor,
    ) -> None:
        """`residual += delta` (unless it is None), and the root mean square norm of the sum to `out`."""

    def rotary_write(
        self,
        qkv: torch.Tensor,
        rotary: torch.Tensor,
        positions: torch.Tensor,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """Turn queries and keys by their positions; keys and values to the cache."""


class TorchOps:
    """The same by PyTorch's operations, on any device: what the kernels have to compute."""

    def bind(self, matrix: Matrix) -> Apply:
        """See StepOps."""
        return matrix.apply

    def bind_gated(self, matrix: Matrix) -> ApplyGated:
        """See StepOps."""

        def apply(x: torch.Tensor, out: torch.Tensor) -> None:
            gate, up = matrix.apply(x).chunk(2, -1)
            out.copy_(F.silu(gate) * up)

        return apply

    def add_rms_norm(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor | None,
        weight: torch.Tensor,
        epsilon: float,
        out: torch.Tensor,
    ) -> None:
        """See StepOps."""
        if delta is not None:
            residual += delta
        out.copy_(rms_norm(residual, weight, epsilon))

    def rotary_write(
        self,
        qkv: torch.Tensor,
        rotary: torch.Tensor,
        positions: torch.Tensor,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """See StepOps."""
        num_heads, num_kv_heads = queries.shape[1], keys.shape[1]
        rows = (positions >= 0).nonzero()[:, 0]
        at = positions[rows].long()
        cosine, sine = (rotary[at, part].repeat(1, 2)[:, None] for part in (0, 1))
        turned, value = qkv[rows].split([num_heads + num_kv_heads, num_kv_heads], 1)
        low, high = turned.chunk(2, -1)
        turned = turned * cosine + torch.cat([-high, low], -1) * sine
        queries[rows] = turned[:, :num_heads]
        keys[rows, :, at] = turned[:, num_heads:]
        values[rows, :, at] = value


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Root mean square norm over the last dimension, in float32, rounded before the weight as in transformers."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * wide.to(x.dtype)


class Decoder:
    """A model's decode step for a batch of rows.

    Args:
        weights: the model's.
        cache: of `batch` rows.
        ops: operations between the products.
    """

    def __init__(self, weights: DecodeWeights, cache: KVCache, ops: StepOps) -> None:
        model = weights.model
        self._weights, self._cache, self._ops = weights, cache, ops
        batch, dtype, device = cache.keys[0].shape[0], model.dtype, model.device
        self._rotary = rotary_table(model, cache.capacity)
        make = lambda *shape: torch.empty(batch, *shape, dtype=dtype, device=device)  # noqa: E731
        self._hidden = make(weights.hidden_size)
        self._queries = torch.zeros(batch, weights.num_heads, model.head_dim, dtype=dtype, device=device)
        self._gated = make(weights.layers[0].down.shape[1])
        self._layers = [
            (layer, ops.bind(layer.qkv), ops.bind(layer.out), ops.bind_gated(layer.gate_up), ops.bind(layer.down))
            for layer in weights.layers
        ]
        self._head = ops.bind(weights.head)

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """One token per row.

        Args:
            ids: int64 `[B]`.
            positions: int32 `[B]`, where they stand; negative in rows without a token.
            attend: the attention over what each row sees, the new token included.

        Returns:
            Logits `[B, vocab_size]`; those of rows without a token mean nothing.
        """
        weights, hidden, batch = self._weights, self._hidden, len(ids)
        epsilon = weights.epsilon
        residual, delta = weights.embedding[ids], None
        for number, (layer, qkv_of, out_of, gate_up_into, down_of) in enumerate(self._layers):
            self._ops.add_rms_norm(residual, delta, layer.input_norm, epsilon, hidden)
            qkv = qkv_of(hidden).view(batch, -1, self._queries.shape[-1])
            self._norm_heads(qkv, layer)
            keys, values = self._cache.keys[number], self._cache.values[number]
            self._ops.rotary_write(qkv, self._rotary, positions, self._queries, keys, values)
            delta = out_of(attend(number, self._queries).flatten(1))
            self._ops.add_rms_norm(residual, delta, layer.mlp_norm, epsilon, hidden)
            gate_up_into(hidden, self._gated)
            delta = down_of(self._gated)
        self._ops.add_rms_norm(residual, delta, weights.norm, epsilon, hidden)
        return self._head(hidden)

    def _norm_heads(self, qkv: torch.Tensor, layer: Layer) -> None:
        """Qwen3 norms every head of queries and keys."""
        if layer.query_norm is None:
            return
        num_kv_heads = self._weights.num_kv_heads
        queries, keys, _ = qkv.split([self._weights.num_heads, num_kv_heads, num_kv_heads], 1)
        queries.copy_(rms_norm(queries, layer.query_norm, self._weights.epsilon))
        keys.copy_(rms_norm(keys, layer.key_norm, self._weights.epsilon))


def rotary_table(model: SpanModel, capacity: int) -> torch.Tensor:
    """Cosines and sines of positions `[0, capacity)`, `[capacity, 2, head_dim / 2]`, as the model itself makes them."""
    positions = torch.arange(capacity, device=model.device)[None]
    like = torch.empty(0, dtype=model.dtype, device=model.device)
    cosine, sine = model.hf.get_decoder().rotary_emb(like, positions)
    half = model.head_dim // 2
    return torch.stack([cosine[0, :, :half], sine[0, :, :half]], 1).contiguous()
