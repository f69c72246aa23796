"""A model's weights for decode steps, in the form and the order of the step's GEMMs.

A step multiplies with `Matrix` objects, not with tensors: a matrix alone decides how its weights are stored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F

from selfspan_core.errors import ModelError
from selfspan_core.models.freed_memory import give_back_freed_memory

if TYPE_CHECKING:
    from selfspan_core.models.model import SpanModel


class Matrix(Protocol):
    """A weight matrix of a decode step.

    Attributes:
        shape: `(num_out, depth)`.
        num_bytes: bytes that one multiplication reads of it.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """`(num_out, depth)`."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes that one multiplication reads of it, bias included."""
        ...

    @property
    def floats(self) -> torch.Tensor | None:
        """The weights, `[num_out, depth]`, where they are plain floats that a kernel may take; else None."""
        ...

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """`x W^T + bias`: `[B, depth]` in, `[B, num_out]` out, in the type of `x`."""
        ...


@dataclass(frozen=True)
class DenseMatrix:
    """A matrix of plain floats; PyTorch multiplies with it, unless a step's operations bind it to a kernel.

    Attributes:
        weight: `[num_out, depth]`.
        bias: `[num_out]`, or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """See Matrix."""
        num_out, depth = self.weight.shape
        return num_out, depth

    @property
    def num_bytes(self) -> int:
        """See Matrix."""
        return bytes_of(self.weight) + (0 if self.bias is None else bytes_of(self.bias))

    @property
    def floats(self) -> torch.Tensor | None:
        """See Matrix."""
        return self.weight

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """See Matrix."""
        return F.linear(x, self.weight, self.bias)


class Store(Protocol):
    """How matrices are stored.

    Attributes:
        keeps_weights: whether the model's own modules are to keep their weights; else a matrix has them alone.
    """

    @property
    def keeps_weights(self) -> bool:
        """See the class."""
        ...

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None, is_shared: bool) -> Matrix:
        """The matrix of a weight `[num_out, depth]`; it may write the values that it keeps into the weight.

        Args:
            weight: the weight.
            bias: `[num_out]`, or None.
            is_shared: whether others read the weight, as an embedding does.
        """
        ...


@dataclass(frozen=True)
class DenseStore:
    """Stores matrices as the floats that they are."""

    keeps_weights: bool = True

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None, is_shared: bool) -> DenseMatrix:
        """See Store."""
        return DenseMatrix(weight, bias)


@dataclass(frozen=True)
class Layer:
    """One layer's weights; `qkv` and `gate_up` each fuse several of the model's matrices, the gate's rows first."""

    input_norm: torch.Tensor
    qkv: Matrix
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    out: Matrix
    mlp_norm: torch.Tensor
    gate_up: Matrix
    down: Matrix

    @property
    def matrices(self) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """All matrices, in the order in which a step multiplies with them."""
        return self.qkv, self.out, self.gate_up, self.down

    @property
    def norms(self) -> tuple[torch.Tensor, ...]:
        """The weights of its norms."""
        every = (self.input_norm, self.query_norm, self.key_norm, self.mlp_norm)
        return tuple(norm for norm in every if norm is not None)


class DecodeWeights:
    """A model's weights in the form that decode steps use; made once, for any number of decoders.

    The model's own modules become views of the fused weights, or have none any more, so that no memory is used twice.

    Args:
        model: a Llama, Mistral, Qwen2 or Qwen3 model.
        store: how matrices are stored.

    Raises:
        ModelError: the model has a part that the decode step does not support.
    """

    def __init__(self, model: "SpanModel", store: Store | None = None) -> None:
        store = store or DenseStore()
        config = model.hf.config
        body: Any = model.hf.get_decoder()  # transformers' modules say nothing of their parts' types
        if config.hidden_act != "silu":
            raise ModelError(f"the decode step knows the activation 'silu', not {config.hidden_act!r}")
        self.model = model
        self.num_heads, self.num_kv_heads = config.num_attention_heads, model.num_kv_heads
        self.epsilon, self.hidden_size = config.rms_norm_eps, config.hidden_size
        head: Any = model.hf.get_output_embeddings()
        self.embedding = body.embed_tokens.weight
        is_tied = head.weight.data_ptr() == self.embedding.data_ptr()
        self.head: Matrix = store(_fused((head,)), head.bias, is_tied)
        if not store.keeps_weights and not is_tied:
            _empty((head,))
        self.layers: list[Layer] = []
        for module in body.layers:
            self.layers.append(_layer_of(module, store))
            give_back_freed_memory()  # matrices that were fused leave holes, which the next layer's do not fit
        self.norm = body.norm.weight
        self._rotary = torch.empty(0)

    def rotary(self, num_positions: int) -> torch.Tensor:
        """Cosines and sines of the first positions, `[num_positions, 2, head_dim / 2]`, as the model makes them."""
        if len(self._rotary) < num_positions:
            model = self.model
            # By doubling: every run asks for as many as it may need.
            size = min(max(num_positions, 2 * len(self._rotary)), max(num_positions, model.max_context))
            like = torch.empty(0, dtype=model.dtype, device=model.device)
            body: Any = model.hf.get_decoder()
            cosine, sine = body.rotary_emb(like, torch.arange(size, device=model.device)[None])
            half = model.head_dim // 2
            self._rotary = torch.stack([cosine[0, :, :half], sine[0, :, :half]], 1).contiguous()
        return self._rotary[:num_positions]

    @property
    def matrices(self) -> Iterator[Matrix]:
        """All matrices that a step multiplies with."""
        for layer in self.layers:
            yield from layer.matrices
        yield self.head

    @property
    def shapes(self) -> set[tuple[int, int]]:
        """`(num_out, depth)` of all of them."""
        return {matrix.shape for matrix in self.matrices}

    @property
    def num_bytes(self) -> int:
        """Bytes that a step reads of the weights, whatever the batch; of the embedding it reads a few rows only."""
        norms = [norm for layer in self.layers for norm in layer.norms]
        return sum(matrix.num_bytes for matrix in self.matrices) + sum(map(bytes_of, [*norms, self.norm]))


def bytes_of(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def _layer_of(module: Any, store: Store) -> Layer:
    attention, mlp = module.self_attn, module.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    biases = [projection.bias for projection in projections]
    if attention.o_proj.bias is not None or any(part.bias is not None for part in (mlp.gate_proj, mlp.down_proj)):
        raise ModelError("the decode step knows biases of queries, keys and values only")

    def stored(modules: Sequence[torch.nn.Linear], bias: torch.Tensor | None = None) -> Matrix:
        made = store(_fused(modules), bias, False)
        if not store.keeps_weights:
            _empty(modules)
        return made

    return Layer(
        module.input_layernorm.weight,
        stored(projections, None if biases[0] is None else torch.cat(biases)),
        getattr(getattr(attention, "q_norm", None), "weight", None),
        getattr(getattr(attention, "k_norm", None), "weight", None),
        stored((attention.o_proj,)),
        module.post_attention_layernorm.weight,
        stored((mlp.gate_proj, mlp.up_proj)),
        stored((mlp.down_proj,)),
    )


def _empty(modules: Sequence[torch.nn.Linear]) -> None:
    """Take the weights out of modules, which compute nothing any more."""
    for module in modules:
        module.weight.data = module.weight.data.new_empty(0)


def _fused(modules: Sequence[torch.nn.Linear]) -> torch.Tensor:
    """The weights of linear layers below one another, `[num_out, depth]`, which the layers share from now on.

    In float32 on a CPU those that widen are stored input-major: one row times a matrix reads all of it from memory
    once, and MKL takes a quarter less time for it from this layout (measured on two cores of an AMD EPYC, weights not
    in the cache: 8192 x 384 343 us instead of 489, 2048 x 384 111 instead of 143; 384 x 1024 takes longer, 67 instead
    of 59).
    """
    weights = [module.weight.data for module in modules]
    num_out, depth = sum(len(weight) for weight in weights), weights[0].shape[1]
    is_float32 = weights[0].device.type == "cpu" and weights[0].dtype is torch.float32
    if is_float32 and num_out > depth and torch.backends.mkl.is_available():
        fused = torch.cat([weight.t() for weight in weights], 1).t()
    else:
        fused = torch.cat(weights) if len(weights) > 1 else weights[0]
    sizes = [module.out_features for module in modules]
    for module, part in zip(modules, fused.split(sizes), strict=True):
        module.weight.data = part
    return fused
