"""One decode step of a Llama-family model, written out: a few tokens, nothing decided on the host.

Transformers' own forward takes some thirty small operations a layer. Here a handful of operations (`StepOps`) lies
between the GEMMs: CUDA kernels on a GPU, PyTorch's own elsewhere. Attention and the KV cache are not the decoder's: it
hands each layer's queries, keys and values to whoever calls it (`Attention`). With a fixed number of tokens all shapes
are fixed, so a step can be captured in a CUDA graph. Values are rounded where transformers rounds them.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from cuda_kernels.checks import queries_per_row
from selfspan_core.models.weights import DecodeWeights, Layer, Matrix

Apply = Callable[[torch.Tensor], torch.Tensor]
"""`[T, depth]` -> `[T, num_out]`."""
ApplyGated = Callable[[torch.Tensor, torch.Tensor], None]
"""`[T, depth]`, and where the result goes, `[T, num_out / 2]`."""
Attention = Callable[[int, torch.Tensor], torch.Tensor]
"""(layer, `[T, num_heads + 2 num_kv_heads, head_dim]`: queries, keys, values, not rotated yet) -> the output of
attention, `[T, num_heads, head_dim]`, over what each token sees; keys and values are in the cache then."""


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
        """Turn queries and keys by their positions; keys and values to the cache, of whose rows each has as many
        tokens."""


class TorchOps:
    """The same by PyTorch's operations, on any device: what the kernels have to compute."""

    def bind(self, matrix: Matrix) -> Apply:
        """See StepOps."""
        return matrix.apply

    def bind_gated(self, matrix: Matrix) -> ApplyGated:
        """See StepOps."""

        def apply(x: torch.Tensor, out: torch.Tensor) -> None:
            gate, up = matrix.apply(x).chunk(2, -1)
            torch.mul(F.silu(gate), up, out=out)

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
        rms_norm(residual, weight, epsilon, out)

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
        num_queries = queries_per_row("queries", len(queries), len(keys))
        tokens = (positions >= 0).nonzero()[:, 0]
        rows, at = tokens // num_queries, positions[tokens].long()
        cosine, sine = (rotary[at, part].repeat(1, 2)[:, None] for part in (0, 1))
        turned, value = qkv[tokens].split([num_heads + num_kv_heads, num_kv_heads], 1)
        low, high = turned.chunk(2, -1)
        turned = turned * cosine + torch.cat([-high, low], -1) * sine
        queries[tokens] = turned[:, :num_heads]
        keys[rows, :, at] = turned[:, num_heads:]
        values[rows, :, at] = value


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, out: torch.Tensor) -> None:
    """Root mean square norm over the last dimension to `out`; in float32, rounded before the weight as in transformers.

    PyTorch's function, given the weight, would round once, behind it; without it, it takes a third of the time of the
    same operations one by one, which is what a step of few tokens waits for.
    """
    torch.mul(F.rms_norm(x, weight.shape, None, epsilon), weight, out=out)


class Decoder:
    """A model's decode step.

    Args:
        weights: the model's.
        max_tokens: most tokens of one step.
        ops: operations between the GEMMs.
    """

    def __init__(self, weights: DecodeWeights, max_tokens: int, ops: StepOps) -> None:
        self._weights, self._ops = weights, ops
        model = weights.model
        make = lambda width: torch.empty(max_tokens, width, dtype=model.dtype, device=model.device)  # noqa: E731
        self._hidden = make(weights.hidden_size)
        self._gated = make(weights.layers[0].down.shape[1])
        self._layers = [
            (layer, ops.bind(layer.qkv), ops.bind(layer.out), ops.bind_gated(layer.gate_up), ops.bind(layer.down))
            for layer in weights.layers
        ]
        self._head = ops.bind(weights.head)

    def __call__(self, ids: torch.Tensor, attention: Attention, only_last: bool = False) -> torch.Tensor:
        """Feed a few tokens, of one row or of several; or a prompt.

        Args:
            ids: int64 `[T]`.
            attention: stores every layer's keys and values, and attends.
            only_last: whether the last token alone goes through the output layer.

        Returns:
            Logits `[T, vocab_size]`; of the last token alone `[1, vocab_size]`.
        """
        weights, num_tokens = self._weights, len(ids)
        hidden, gated, epsilon = self._hidden[:num_tokens], self._gated[:num_tokens], weights.epsilon
        residual, delta = weights.embedding[ids], None
        for number, (layer, qkv_of, out_of, gate_up_into, down_of) in enumerate(self._layers):
            self._ops.add_rms_norm(residual, delta, layer.input_norm, epsilon, hidden)
            qkv = qkv_of(hidden).view(num_tokens, -1, weights.model.head_dim)
            self._norm_heads(qkv, layer)
            delta = out_of(attention(number, qkv).flatten(1))
            self._ops.add_rms_norm(residual, delta, layer.mlp_norm, epsilon, hidden)
            gate_up_into(hidden, gated)
            delta = down_of(gated)
        self._ops.add_rms_norm(residual, delta, weights.norm, epsilon, hidden)
        return self._head(hidden[-1:] if only_last else hidden)

    def _norm_heads(self, qkv: torch.Tensor, layer: Layer) -> None:
        """Qwen3 norms every head of queries and keys."""
        if layer.query_norm is None or layer.key_norm is None:
            return
        num_kv_heads = self._weights.num_kv_heads
        queries, keys, _ = qkv.split([self._weights.num_heads, num_kv_heads, num_kv_heads], 1)
        rms_norm(queries, layer.query_norm, self._weights.epsilon, queries)
        rms_norm(keys, layer.key_norm, self._weights.epsilon, keys)
