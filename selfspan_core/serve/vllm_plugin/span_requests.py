"""Follows the requests of a worker's batch: vLLM's interface of logits processors, which tells it of all of them.

It changes no logits. Before every forward pass vLLM tells it which requests came, went and moved, with their
parameters, the ids of their prompts, and lists that hold the ids of their answers; so it knows what each row's next
query sees.
"""

from typing import TYPE_CHECKING

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from selfspan_core.serve.vllm_plugin.followed import Followed, SpanRows
from selfspan_core.serve.vllm_plugin.settings import SpanSettings
from selfspan_core.serve.vllm_plugin.support import markers_of, require_no_seed, require_supported

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate


class SpanRequests(LogitsProcessor):
    """Self-selected attention's view of the batch.

    Attributes:
        rows: the requests that read less than everything, shared with the attention layers.

    Raises:
        ImplUnavailable: this vLLM, or how it was started, is not supported.
        ModelError: the served model names no markers.
    """

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:
        require_supported(vllm_config)
        self._markers = markers_of(vllm_config)
        self._layers = vllm_config.compilation_config.static_forward_context
        self._is_shared = False
        self.rows = SpanRows()

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        """Refuse a request before it is queued: SettingError, a ValueError, of which vLLM's server makes a 400."""
        SpanSettings.read(sampling_params.extra_args)
        require_no_seed(sampling_params.seed)

    def update_state(self, batch_update: "BatchUpdate | None") -> None:
        """Take over what changed in the batch, and follow the ids that came."""
        process_dict_updates(self.rows.followed, batch_update, self._followed)
        for followed in self.rows.followed.values():
            followed.catch_up()
        if not self._is_shared:
            self._share()

    def is_argmax_invariant(self) -> bool:
        """It leaves logits alone."""
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits as they are."""
        return logits

    def _followed(
        self, params: "SamplingParams", prompt_ids: list[int] | None, output_ids: list[int]
    ) -> Followed | None:
        settings = SpanSettings.read(params.extra_args)
        if settings is None or settings.attention == "dense":
            return None
        if prompt_ids is None:
            raise RuntimeError("a request without the ids of its prompt")  # refused when vLLM starts
        return Followed(self._markers, settings.layout(len(prompt_ids)), output_ids)

    def _share(self) -> None:
        """Show the rows to the attention layers; they did not exist when this object was made."""
        for layer in self._layers.values():
            impl = getattr(layer, "impl", None)
            if hasattr(impl, "span_rows"):
                impl.span_rows = self.rows
                self._is_shared = True
        if not self._is_shared:
            raise RuntimeError("none of the model's layers attends through selfspan's backend")
