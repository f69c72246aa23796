"""A Llama-family base model, with or without an adapter merged in, and the hook that replaces its attention.

Transformers computes everything except attention and its cache. Attention goes through one function, registered under
`ATTENTION_NAME`; it calls the `Reader` that travels with the forward call as a keyword argument. There is no process-
global state: two lanes, two models, two calls never see each other's reader.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.attention.readers import Reader
from selfspan_core.errors import ModelError
from selfspan_core.models.adapters import merge_adapter, read_adapter
from selfspan_core.models.base_config import FAMILIES
from selfspan_core.models.freed_memory import give_back_freed_memory
from selfspan_core.models.loading import AS_STORED, load_base, resize_for_tokenizer
from selfspan_core.models.places import place_of_base
from selfspan_core.models.weights import DecodeWeights, Store

if TYPE_CHECKING:
    from selfspan_core.models.tokenizer import SpanTokenizer

ATTENTION_NAME = "selfspan"


def _reader_attention(
    module: Any,  # a layer of transformers; torch's types do not know its layer_idx
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    reader: Reader | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """The attention function for transformers: `[1, heads, T, head_dim]` in, `[1, T, heads, head_dim]` out."""
    if reader is None:
        raise RuntimeError("this model's attention needs a reader: call SpanModel.forward_logits")
    if attention_mask is not None:
        raise RuntimeError("this model takes no attention mask: a reader decides who sees what")
    return reader.attend(module.layer_idx, query, key, value, scaling).transpose(1, 2), None


# No entry in AttentionMaskInterface, on purpose: without one transformers builds no mask at all and passes None. That
# is wrong for a function that relies on masks with transformers' own cache; ours has neither, and refuses a mask.
AttentionInterface.register(ATTENTION_NAME, _reader_attention)


class SpanModel:
    """A causal language model whose attention is a Reader.

    Attributes:
        hf: the transformers model, in eval mode, adapter merged.
        tokenizer: the SpanTokenizer that goes with the base.
        device, dtype: where and in what the model computes.
        max_context: most positions that the model supports.
        vocab_size: rows of its output layer.
    """

    def __init__(
        self, hf: PreTrainedModel, tokenizer: "SpanTokenizer | None" = None, store: Store | None = None
    ) -> None:
        config = hf.config
        if config.model_type not in FAMILIES:
            raise ModelError(f"a model of type {config.model_type!r} is not supported; {', '.join(FAMILIES)} are")
        if hf.config._attn_implementation != ATTENTION_NAME:
            hf.set_attn_implementation(ATTENTION_NAME)
        self.hf = hf.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._store = store
        self.device, self.dtype = hf.device, hf.dtype
        self.num_layers = config.num_hidden_layers
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.max_context = _max_context(config)
        self._body, self._head = hf.get_decoder(), hf.get_output_embeddings()
        self.vocab_size = self._head.weight.shape[0]
        self._positions = torch.arange(self.max_context, device=self.device)[None]

    @classmethod
    def load(
        cls,
        base: str | Path,
        adapter: str | Path | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        tokenizer: "SpanTokenizer | None" = None,
        store: Store | None = None,
    ) -> "SpanModel":
        """Load a base, and merge an adapter into this copy of it.

        Each call makes a model of its own: adapters share no state. Weights are read from safetensors only. An adapter
        is merged in float32, matrix by matrix, and each sum rounded once.

        Args:
            base: a Llama, Mistral, Qwen2 or Qwen3 model: a registered one, a folder, a GGUF file or a hub id.
            adapter: folder of a PEFT LoRA adapter, or None for the base alone.
            device: torch device.
            dtype: of weights, keys and values.
            tokenizer: the base's tokenizer where it is already loaded.
            store: how decode steps store matrices.

        Raises:
            ModelError: a folder is missing or incomplete, the architecture is not supported, or the adapter was made
                for another base.
        """
        base = place_of_base(base)
        if adapter is not None:
            read_adapter(adapter)  # it costs little, and a base of some gigabytes costs much
        if tokenizer is None:
            from selfspan_core.models.tokenizer import SpanTokenizer

            try:
                tokenizer = SpanTokenizer.load(base)
            except ModelError:
                raise
            except (OSError, ValueError) as error:
                raise ModelError(f"cannot load the tokenizer of {str(base)!r}: {error}") from error
        # Any, because transformers' wrapper around `to` hides from type checkers that it takes a device.
        is_final = adapter is None or dtype is torch.float32
        hf: Any = load_base(base, dtype=dtype if is_final else AS_STORED, attention=ATTENTION_NAME)
        resize_for_tokenizer(hf, tokenizer)
        if adapter is not None:
            hf = merge_adapter(hf, Path(adapter), base, dtype)
            give_back_freed_memory()
        return cls(hf.to(device), tokenizer, store)

    @functools.cached_property
    def weights(self) -> DecodeWeights:
        """What this model's decode steps read of it.

        Raises:
            ModelError: the model has something that the decode step does not know.
        """
        return DecodeWeights(self, self._store)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that a cache holds for one token, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def new_cache(self, capacity: int, batch: int = 1) -> KVCache:
        """A key/value cache of this model's shape."""
        return KVCache(self.num_layers, self.num_kv_heads, self.head_dim, capacity, self.dtype, self.device, batch)

    def forward_logits(self, ids: torch.Tensor, start_position: int, reader: Reader) -> torch.Tensor:
        """One forward pass; only the last position goes through the output layer.

        Args:
            ids: int64 `[1, T]` on the model's device.
            start_position: position of the first one.
            reader: planned for these positions.

        Returns:
            Logits `[vocab_size]` of the last token.
        """
        positions = self._positions[:, start_position : start_position + ids.shape[1]]
        out = self._body(input_ids=ids, position_ids=positions, use_cache=False, reader=reader)
        return self._head(out.last_hidden_state[0, -1])

    def forward_logits_at(self, ids: torch.Tensor, place: torch.Tensor, reader: Reader) -> torch.Tensor:
        """One forward pass from position 0; the host need not know which position goes through the output layer.

        Args:
            ids: int64 `[1, T]` on the model's device.
            place: int64 `[1]`, of the token whose logits are wanted.
            reader: planned for these positions.

        Returns:
            Logits `[1, vocab_size]`.
        """
        positions = self._positions[:, : ids.shape[1]]
        out = self._body(input_ids=ids, position_ids=positions, use_cache=False, reader=reader)
        return self._head(out.last_hidden_state[0].index_select(0, place))

    def forward_argmax(self, ids: torch.Tensor, positions: torch.Tensor, reader: Reader) -> torch.Tensor:
        """One forward pass over a batch; the likeliest next token at every position.

        Args:
            ids: int64 `[B, T]` on the model's device.
            positions: int64 `[B, T]`, their positions.
            reader: its `attend` takes batches.

        Returns:
            int64 `[B, T]`.
        """
        out = self._body(input_ids=ids, position_ids=positions, use_cache=False, reader=reader)
        # Row by row: the logits of all of them at once can take more memory than everything else.
        return torch.stack([self._head(hidden).argmax(-1) for hidden in out.last_hidden_state])


def _max_context(config: Any) -> int:
    """The most positions for which the model was built to attend to everything before them."""
    limit = config.max_position_embeddings
    uses_window = "sliding_attention" in (getattr(config, "layer_types", None) or ("sliding_attention",))
    window = getattr(config, "sliding_window", None) if uses_window else None
    return min(limit, window) if window else limit
