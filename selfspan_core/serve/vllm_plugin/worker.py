"""vLLM's worker for CUDA, which also shows the plugin where the ids of a step lie on the device: for `--worker-cls`.

With asynchronous scheduling a step is planned before the host has the ids of the step before, which vLLM copies from
what was drawn to what is taken in, on the device. None of its interfaces for plugins shows them; the worker's class is
an option.
"""

from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from selfspan_core.serve.vllm_plugin.span_requests import SpanRequests


class SpanWorker(Worker):
    """See the module."""

    def init_device(self) -> None:
        """vLLM's own, and what this class is for."""
        super().init_device()
        show_ids(self.model_runner)


def show_ids(runner: Any) -> None:
    """Tell what follows the batch where a runner has the ids of a step's queries: a buffer that stays where it is."""
    for one in runner.input_batch.logitsprocs.all:
        if isinstance(one, SpanRequests):
            one.rows.next_ids = runner.input_ids.gpu
