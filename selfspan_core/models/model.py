"""A Llama-family base model, with or without an adapter merged in, and the hook that gives us its attention.

Transformers computes everything except attention and its cache. Attention goes through one function, registered under
`ATTENTION_NAME`; it calls the `Reader` that travels with the forward call as a keyword argument. There is no process-
global state: two lanes, two models, two calls never see each other's reader.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.attention.readers import Reader
from selfspan_core.errors import ModelError
from selfspan_core.models.model_names import why_not_found

if TYPE_CHECKING:
    from selfspan_core.models.tokenizer import SpanTokenizer

ATTENTION_NAME = "selfspan"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def _reader_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    reader: Reader | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for attention: `[1, heads, T, head_dim]` in, `[1, T, heads, head_dim]` out."""
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
        max_context: most positions that it can be given.
        vocab_size: rows of its output layer.
    """

    def __init__(self, hf: PreTrainedModel, tokenizer: "SpanTokenizer | None" = None) -> None:
        config = hf.config
        if config.model_type not in FAMILIES:
            raise ModelError(f"a model of type {config.model_type!r} is not supported; {', '.join(FAMILIES)} are")
        if hf.config._attn_implementation != ATTENTION_NAME:
            hf.set_attn_implementation(ATTENTION_NAME)
        self.hf = hf.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device, self.dtype = hf.device, hf.dtype
        self.num_layers = config.num_hidden_layers
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.max_context = _max_context(config)
        self._body, self._head = hf.get_decoder(), hf.get_output_embeddings()
        self.vocab_size = self._head.weight.shape[0]
        self._positions = torch.arange(self.max_context, device=self.device)[None]
        if self.device.type == "cpu" and self.dtype is torch.float32 and torch.backends.mkl.is_available():
            _lay_out_for_one_row(hf)

    @classmethod
    def load(
        cls,
        base: str | Path,
        adapter: str | Path | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        tokenizer: "SpanTokenizer | None" = None,
    ) -> "SpanModel":
        """Load a base by folder or hub id, and merge an adapter into this copy of it.

        Each call makes a model of its own: adapters share no state. Weights are read from safetensors only. An adapter
        is merged in float32 and the sum rounded once, so a large base needs host memory for float32 weights.

        Args:
            base: folder, or hub id of a Llama, Mistral, Qwen2 or Qwen3 model.
            adapter: folder of a PEFT LoRA adapter, or None for the base alone.
            device: torch device.
            dtype: of weights, keys and values.
            tokenizer: the base's tokenizer where it is already loaded.

        Raises:
            ModelError: a folder is missing or incomplete, the architecture is not supported, or the adapter was made
                for another base.
        """
        if tokenizer is None:
            from selfspan_core.models.tokenizer import SpanTokenizer

            _require_base(base)
            try:
                tokenizer = SpanTokenizer.load(base)
            except (OSError, ValueError) as error:
                raise ModelError(f"cannot load the tokenizer of {str(base)!r}: {error}") from error
        hf = load_base(base, dtype=dtype if adapter is None else torch.float32, attention=ATTENTION_NAME)
        resize_for_tokenizer(hf, tokenizer)
        if adapter is not None:
            hf = _merge_adapter(hf, Path(adapter), base)
            # Parameters alone: `hf.to(dtype)` would round the rotary frequencies, which are a buffer, too.
            for parameter in hf.parameters():
                parameter.data = parameter.data.to(dtype)
        return cls(hf.to(device), tokenizer)

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

    def forward_rows(
        self, ids: torch.Tensor, positions: torch.Tensor, last: torch.Tensor, reader: Reader
    ) -> torch.Tensor:
        """One forward pass over a batch; one position per row goes through the output layer.

        Args:
            ids: int64 `[B, T]` on the model's device.
            positions: int64 `[B, T]`, their positions.
            last: int64 `[B]`, index of each row's token whose logits are wanted.
            reader: planned for these tokens; its `attend` takes batches.

        Returns:
            Logits `[B, vocab_size]`.
        """
        out = self._body(input_ids=ids, position_ids=positions, use_cache=False, reader=reader)
        rows = torch.arange(len(last), device=last.device)
        return self._head(out.last_hidden_state[rows, last])

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


def load_base(base: str | Path, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """A base model from a folder or by hub id, safetensors only, with a named transformers attention.

    Raises:
        ModelError: not found, incomplete, or of an architecture that is not supported.
    """
    _require_base(base)
    _require_safetensors(base)
    try:
        config = AutoConfig.from_pretrained(base)
        if config.model_type not in FAMILIES:
            raise ModelError(
                f"{base}: models of type {config.model_type!r} are not supported; {', '.join(FAMILIES)} are"
            )
        model, found = AutoModelForCausalLM.from_pretrained(
            base,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
        )
    except ModelError:
        raise
    except RuntimeError as error:
        raise ModelError(f"the weights of the base model {str(base)!r} do not fit its config.json") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"cannot load the base model {str(base)!r}: {error}") from error
    _require_all_tensors(base, config, found)
    return model


def _require_all_tensors(base: str | Path, config: object, found: Mapping[str, Collection]) -> None:
    """Refuse a base whose files do not hold what its configuration asks for, no more and no less.

    Transformers would make up the tensors that are missing, at random, and only warn.
    """
    harmless = ("rotary_emb.inv_freq", *(("lm_head.weight",) if config.tie_word_embeddings else ()))
    left_over = [name for name in found["unexpected_keys"] if not name.endswith(harmless)]
    for names, what in ((found["missing_keys"], "missing"), (left_over, "too many")):
        if names:
            raise ModelError(
                f"the weights of the base model {str(base)!r} do not fit its config.json: "
                f"{len(names)} of the tensors are {what}, {min(names)} among them"
            )


def _require_safetensors(base: str | Path) -> None:
    """Refuse a folder whose index names anything but safetensors files beside it: others are pickles, or elsewhere."""
    index = Path(base) / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is no index of weights: {error!r}") from error
    for shard in sorted(map(str, shards)):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(f"{index} names {shard[:80]!r}: weights are read from safetensors files beside it only")
        if not (index.parent / shard).is_file():
            raise ModelError(f"{index} names {shard!r}, which is not there")


def resize_for_tokenizer(hf: PreTrainedModel, tokenizer: "SpanTokenizer") -> None:
    """Give every id of the tokenizer an embedding row; a base that has enough rows (or spare ones) is left alone.

    New rows are random but always the same ones: training and each serving process must start from one model.
    """
    if tokenizer.vocab_size <= hf.get_input_embeddings().weight.shape[0]:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf.resize_token_embeddings(tokenizer.vocab_size)


def _require_base(base: str | Path) -> None:
    """Say plainly that a folder is missing, instead of asking the hub for a model of that name."""
    reason = why_not_found(base)
    if reason is not None:
        raise ModelError(reason)


def _lay_out_for_one_row(hf: PreTrainedModel) -> None:
    """Store the weights of widening linear layers input-major.

    One row times a `[out, in]` matrix reads the whole matrix from memory once, and MKL does that about twice as fast
    from the transposed layout where `out > in` (measured: output layer 1.3 to 0.5 ms at 8192 x 384). Values, shapes
    and tied weights stay as they are.
    """
    for module in hf.modules():
        if isinstance(module, torch.nn.Linear) and module.out_features > module.in_features:
            module.weight.data = module.weight.data.t().contiguous().t()


def _max_context(config: object) -> int:
    """Positions up to which attending to everything is what the model was built for."""
    limit = config.max_position_embeddings
    uses_window = "sliding_attention" in (getattr(config, "layer_types", None) or ("sliding_attention",))
    window = getattr(config, "sliding_window", None) if uses_window else None
    return min(limit, window) if window else limit


def _merge_adapter(hf: PreTrainedModel, adapter: Path, base: str | Path) -> PreTrainedModel:
    from peft import PeftModel, get_peft_model_state_dict

    weights, config_file = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    for file in (weights, config_file):
        if not file.is_file():
            raise ModelError(f"the adapter {str(adapter)!r} has no {file.name}")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        rows = _trained_rows(config)
        with safe_open(weights, framework="pt") as stored:
            stored_names = set(stored.keys())
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"the adapter {str(adapter)!r} is damaged: {error}") from error
    made_for_another = f"the adapter {str(adapter)!r} was made for another base model than {str(base)!r}"
    if rows and max(rows) >= hf.get_input_embeddings().weight.shape[0]:
        raise ModelError(f"{made_for_another}: it trains token {max(rows)} of a larger vocabulary")
    try:
        wrapped = PeftModel.from_pretrained(hf, adapter)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{made_for_another}: {error}") from error
    # Peft only warns about weights that are missing, and drops those that nothing asks for.
    expected_names = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    for name in sorted(expected_names ^ stored_names):
        raise ModelError(f"{made_for_another}: {'it lacks' if name in expected_names else 'nothing takes'} {name}")
    return wrapped.merge_and_unload(safe_merge=True)


def _trained_rows(adapter_config: object) -> list[int]:
    """Token ids whose embeddings an adapter replaces (a list, or lists by layer name).

    Raises:
        ValueError: this is no configuration of a LoRA adapter.
    """
    if not isinstance(adapter_config, dict) or adapter_config.get("peft_type") != "LORA":
        raise ValueError("its configuration is not that of a LoRA adapter")
    indices = adapter_config.get("trainable_token_indices") or []
    lists = list(indices.values()) if isinstance(indices, dict) else [indices]
    if not all(isinstance(rows, list) and all(isinstance(row, int) for row in rows) for rows in lists):
        raise ValueError("trainable_token_indices holds something other than token ids")
    return [row for rows in lists for row in rows]
