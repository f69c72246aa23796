"""The loss of a causal language model over packed rows, under the visibility of each token."""

import torch
import torch.nn.functional as F
from torch import nn

from training.loop.masks import visibility_mask
from training.loop.packing import IGNORE

TARGETS_MULTIPLE = 1024
"""Places with logits are padded up to a multiple of so many."""


class LanguageModelLoss(nn.Module):
    """Mean cross-entropy of a causal LM over the targets of a packed batch.

    Args:
        model: a transformers causal LM, or a PEFT model around one.
        compiled: fuse the loss with torch.compile.
    """

    def __init__(self, model: nn.Module, compiled: bool = False) -> None:
        super().__init__()
        self.model = model
        self._cross_entropy = torch.compile(cross_entropy) if compiled else cross_entropy

    def logits(self, ids: torch.Tensor, bounds: torch.Tensor, indexed: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [B, S, vocab] for ids [B, S] under the visibility of bounds [B, S, K, 2] and indexed [B, S]."""
        return self._causal_lm.lm_head(self._hidden(ids, bounds, indexed))

    def forward(
        self, ids: torch.Tensor, labels: torch.Tensor, bounds: torch.Tensor, indexed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scalar loss; labels [B, S] hold IGNORE where nothing is to be predicted.

        Logits are made of the targets alone: of a large vocabulary they take more memory than all layers together,
        and most of a row is prompt.
        """
        hidden, labels = self._hidden(ids, bounds, indexed).flatten(0, 1), labels.flatten()
        places = (labels != IGNORE).nonzero().squeeze(1)
        num_targets = len(places)
        # Few different numbers of logits: each would be a shape of its own to compile and to allocate for.
        places = F.pad(places, (0, -len(places) % TARGETS_MULTIPLE))
        chosen = labels[places].masked_fill(torch.arange(len(places), device=labels.device) >= num_targets, IGNORE)
        return self._cross_entropy(self._causal_lm.lm_head(hidden[places]), chosen)

    @property
    def _causal_lm(self) -> nn.Module:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _hidden(self, ids: torch.Tensor, bounds: torch.Tensor, indexed: torch.Tensor | None) -> torch.Tensor:
        mask = visibility_mask(bounds, indexed)
        return self._causal_lm.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the targets, in float32: logits [N, vocab], labels [N]."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE)
