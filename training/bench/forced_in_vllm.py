"""Recorded ids in vLLM, whatever its model says: for models with random weights. Needs vLLM."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from training.bench.forced import KEY

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate


class ForcedIds(LogitsProcessor):
    """Leaves each row the one id that comes next in its recording."""

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[Sequence[int], Sequence[int]]] = {}
        self._device = device

    def update_state(self, batch_update: "BatchUpdate | None") -> None:
        """Take over what changed in the batch."""
        process_dict_updates(self._rows, batch_update, _recorded)

    def is_argmax_invariant(self) -> bool:
        """It chooses the ids."""
        return False

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Minus infinity for all ids but one, in the rows that have a recording."""
        wanted = [
            (row, forced[len(written)]) for row, (forced, written) in self._rows.items() if len(written) < len(forced)
        ]
        if wanted:
            rows, ids = torch.tensor(wanted).t().to(self._device, non_blocking=True)
            logits.index_fill_(0, rows, -torch.inf)
            logits.index_put_((rows, ids), torch.zeros((), device=self._device, dtype=logits.dtype))
        return logits


def _recorded(
    params: "SamplingParams", prompt_ids: list[int] | None, output_ids: list[int]
) -> tuple[Sequence[int], Sequence[int]] | None:
    forced = (params.extra_args or {}).get(KEY)
    return None if forced is None else (forced, output_ids)
