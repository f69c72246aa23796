"""The pass over a prompt, into one row of a batch's cache: on CUDA captured by padded length.

Eagerly, transformers launches some twenty kernels a layer, which takes the host 20 ms at 30 layers; a small model's
GPU is done with an article in a tenth of that. A graph has one length, so prompts are padded to one of a few; padding
comes behind the prompt, where attention that is causal does not see it. Which row, which ids and where the prompt ends
lie in device memory.
"""

from collections.abc import Sequence

import torch

from selfspan_core.attention.fused import causal_attention, length_free_kernels
from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.attention.readers import DenseReader
from selfspan_core.engine.step_graphs import StepGraphs
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.tracker import State

LENGTHS = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Padded lengths: at most half again as long as a prompt of more than 128 tokens."""
MOST_PRODUCTS = 10**12
"""Weights times tokens up to which a pass is captured: 3 ms at a GPU's 700 TFLOP/s. Above that the device is slower
than the host that launches, and would spend more time on padding than a graph saves."""


class PromptPass:
    """Passes over prompts of one model.

    Args:
        weights: the model's.
        cache: of the batch.
        graphs: that keep what is captured.
    """

    def __init__(self, weights: DecodeWeights, cache: KVCache, graphs: StepGraphs) -> None:
        self._model, self._cache, self._graphs = weights.model, cache, graphs
        num_weights = sum(num_out * depth for num_out, depth in (matrix.shape for matrix in weights.matrices))
        longest = min(cache.capacity, MOST_PRODUCTS // num_weights)
        self._lengths = [length for length in LENGTHS if length <= longest]
        device = self._model.device
        make = lambda *shape: torch.zeros(shape, dtype=torch.long, device=device)  # noqa: E731
        self._ids = make(1, max(self._lengths, default=0))
        self._row, self._last = make(1), make(1)
        self._logits = torch.empty(1, self._model.vocab_size, dtype=self._model.dtype, device=device)
        self._captured: set[int] = set()

    def prepare(self, row: int, num_tokens: int) -> None:
        """What a capture needs before a prompt of so many tokens, if it is the first of its length.

        Args:
            row: the prompt's, which has no sequence yet: the pass is run for once, and writes to its cache.
            num_tokens: of the prompt.
        """
        length = self._padded(num_tokens)
        if length is not None and length not in self._captured:
            self._row.fill_(row)  # another row may be decoding
            self._last.zero_()  # that of a longer prompt is no place of this pass
            self._graphs.warm_up(lambda: self._padded_pass(length))
            self._captured.add(length)

    def __call__(self, row: int, ids: Sequence[int]) -> torch.Tensor:
        """Process a prompt; waits for nothing.

        Args:
            row: of the batch.
            ids: of the prompt.

        Returns:
            Logits `[1, vocab_size]` of its last token.

        Raises:
            torch.OutOfMemoryError: the pass does not fit.
        """
        on_device = to_device(torch.tensor([list(ids)]), self._model.device)
        length = self._padded(len(ids))
        if length is None:
            return self._eager_pass(row, on_device)
        self._ids[:, : len(ids)].copy_(on_device)
        self._row.fill_(row)
        self._last.fill_(len(ids) - 1)
        self._graphs.run(("prompt", length), lambda: self._padded_pass(length))
        return self._logits.clone()

    def _padded(self, num_tokens: int) -> int | None:
        """The length of the pass; None where it is not padded."""
        return next((length for length in self._lengths if length >= num_tokens), None)

    def _eager_pass(self, row: int, ids: torch.Tensor) -> torch.Tensor:
        reader = DenseReader(self._cache.row(row))
        reader.plan(0, None)
        with length_free_kernels(self._model.device):
            return self._model.forward_logits(ids, 0, reader)[None]

    def _padded_pass(self, length: int) -> None:
        reader = _RowReader(self._cache, self._row)
        with length_free_kernels(self._model.device):
            self._logits.copy_(self._model.forward_logits_at(self._ids[:, :length], self._last, reader))


class _RowReader:
    """A prompt's attention, in the row that a tensor says; see `attention.readers.Reader`."""

    def __init__(self, cache: KVCache, row: torch.Tensor) -> None:
        self._cache, self._row = cache, row

    def plan(self, start: int, states: Sequence[State] | None) -> None:
        """Nothing is to be prepared: a prompt is one pass, from position 0 on."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Reader."""
        keys, values = self._cache.first(layer, key.shape[2])
        keys.index_copy_(0, self._row, key)
        values.index_copy_(0, self._row, value)
        return causal_attention(query, key, value, scale)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy from the host that waits for nothing."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
