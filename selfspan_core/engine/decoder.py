"""One decode step of a Llama-family model, written out: one token per row, nothing decided on the host.

Transformers' own forward takes some thirty small operations a layer, and its shapes change from token to token. Here
shapes are fixed, everything that changes lies in tensors, and what lies between the matrix products is a handful of
operations (`StepOps`): CUDA kernels on a GPU, PyTorch's own elsewhere. So a step can be captured in a CUDA graph.
Values are rounded where transformers rounds them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.models.model import SpanModel

Attend = Callable[[int, torch.Tensor], torch.Tensor]
"""(layer, query `[B, H, D]`) -> attention's output `[B, H, D]`, over what each row sees of the cache."""


class StepOps(Protocol):
    """A step's operations beside attention; see `cuda_kernels.layers.DecodeOps` for shapes."""

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`x weight^T + bias`."""

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

    def gated_linear(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        """`silu(gate) * up` of `x weight^T` to `out`; the first half of the weight's rows are the gate's."""


class TorchOps:
    """The same by PyTorch's operations, on any device: what the kernels have to compute."""

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """See StepOps."""
        return F.linear(x, weight, bias)

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

    def gated_linear(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        """See StepOps."""
        gate, up = F.linear(x, weight).chunk(2, -1)
        out.copy_(F.silu(gate) * up)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Root mean square norm over the last dimension, in float32, rounded before the weight as in transformers."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * wide.to(x.dtype)


@dataclass
class Layer:
    """One layer's weights; `qkv` and `gate_up` are several of the model's, as one product."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    out: torch.Tensor
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class DecodeWeights:
    """A model's weights as its decode steps take them; made once, for any number of decoders.

    The fused weights are the model's own from now on: its modules become views of them, and no memory is taken twice.

    Args:
        model: a Llama, Mistral, Qwen2 or Qwen3 model.

    Raises:
        ValueError: the model has something that the decode step does not know.
    """

    def __init__(self, model: SpanModel) -> None:
        config, body = model.hf.config, model.hf.get_decoder()
        if config.hidden_act != "silu":
            raise ValueError(f"the decode step knows the activation 'silu', not {config.hidden_act!r}")
        self.model = model
        self.num_heads, self.num_kv_heads = config.num_attention_heads, model.num_kv_heads
        self.epsilon, self.hidden_size = config.rms_norm_eps, config.hidden_size
        self.embedding, self.head = body.embed_tokens.weight, model.hf.get_output_embeddings()
        self.layers = [_layer_of(module) for module in body.layers]
        self.norm = body.norm.weight

    @property
    def products(self) -> set[tuple[int, int]]:
        """`(num_out, depth)` of all weights that a step multiplies with."""
        matrices = [matrix for layer in self.layers for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        return {tuple(matrix.shape) for matrix in (*matrices, self.head.weight)}

    @property
    def num_bytes(self) -> int:
        """Bytes that a step reads of the weights, whatever the batch; of the embedding it reads a few rows only."""
        layers = (tensor for layer in self.layers for tensor in vars(layer).values() if tensor is not None)
        return sum(tensor.numel() * tensor.element_size() for tensor in (*layers, self.norm, self.head.weight))


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
        for number, layer in enumerate(weights.layers):
            self._ops.add_rms_norm(residual, delta, layer.input_norm, epsilon, hidden)
            qkv = self._ops.linear(hidden, layer.qkv, layer.qkv_bias).view(batch, -1, self._queries.shape[-1])
            self._norm_heads(qkv, layer)
            keys, values = self._cache.keys[number], self._cache.values[number]
            self._ops.rotary_write(qkv, self._rotary, positions, self._queries, keys, values)
            delta = self._ops.linear(attend(number, self._queries).flatten(1), layer.out)
            self._ops.add_rms_norm(residual, delta, layer.mlp_norm, epsilon, hidden)
            self._ops.gated_linear(hidden, layer.gate_up, self._gated)
            delta = self._ops.linear(self._gated, layer.down)
        self._ops.add_rms_norm(residual, delta, weights.norm, epsilon, hidden)
        return self._ops.linear(hidden, weights.head.weight, weights.head.bias)

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


def _layer_of(module: torch.nn.Module) -> Layer:
    attention, mlp = module.self_attn, module.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    biases = [projection.bias for projection in projections]
    if attention.o_proj.bias is not None or any(part.bias is not None for part in (mlp.gate_proj, mlp.down_proj)):
        raise ValueError("the decode step knows biases of queries, keys and values only")
    return Layer(
        module.input_layernorm.weight,
        _fused(projections),
        None if biases[0] is None else torch.cat(biases),
        getattr(getattr(attention, "q_norm", None), "weight", None),
        getattr(getattr(attention, "k_norm", None), "weight", None),
        attention.o_proj.weight,
        module.post_attention_layernorm.weight,
        _fused((mlp.gate_proj, mlp.up_proj)),
        mlp.down_proj.weight,
    )


def _fused(modules: tuple[torch.nn.Linear, ...]) -> torch.Tensor:
    """Their weights below one another, which the modules share from now on."""
    fused = torch.cat([module.weight for module in modules])
    sizes = [module.out_features for module in modules]
    for module, part in zip(modules, fused.split(sizes), strict=True):
        module.weight.data = part
    return fused
