"""The worker that shows where the ids of a step lie, and that vLLM finds it by its name."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from selfspan_core.serve.vllm_plugin.followed import SpanRows
from selfspan_core.serve.vllm_plugin.span_requests import SpanRequests
from selfspan_core.serve.vllm_plugin.support import SPAN_WORKER
from selfspan_core.serve.vllm_plugin.worker import show_ids


def test_the_option_s_name_is_a_worker():
    """A path that vLLM cannot import, which ends a server that is told to use it."""
    assert issubclass(resolve_obj_by_qualname(SPAN_WORKER), Worker)


def test_ids_are_shown_to_what_follows_the_batch():
    """A runner whose buffer has another name, or that nobody is told of: a server that fails at its first step."""
    requests = object.__new__(SpanRequests)
    requests.rows = SpanRows()
    ids = torch.zeros(4, dtype=torch.int32)
    runner = SimpleNamespace(
        input_batch=SimpleNamespace(logitsprocs=LogitsProcessors([requests])), input_ids=SimpleNamespace(gpu=ids)
    )
    show_ids(runner)
    assert requests.rows.next_ids is ids
    assert "input_ids" in GPUModelRunner._prepare_input_ids.__code__.co_names
