"""What the plugin refuses when vLLM starts, and that it is where vLLM looks for it."""

from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

import vllm
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.sample.logits_processor import build_logitsprocs

from selfspan_core.errors import ImplUnavailable
from selfspan_core.serve.vllm_plugin import support
from selfspan_core.serve.vllm_plugin.plugin import register
from selfspan_core.serve.vllm_plugin.span_requests import SpanRequests

ROOMY = {"pipeline_parallel_size": 1, "decode_context_parallel_size": 1, "worker_cls": "auto"}


def config(**changes) -> SimpleNamespace:
    """As much of vLLM's settings as is looked at."""
    plain = {
        "speculative_config": None,
        "scheduler_config": SimpleNamespace(async_scheduling=False),
        "use_v2_model_runner": False,
        "parallel_config": SimpleNamespace(**ROOMY),
        "cache_config": SimpleNamespace(cache_dtype="auto"),
        "model_config": SimpleNamespace(enable_prompt_embeds=False),
        "kv_transfer_config": None,
    }
    return SimpleNamespace(**plain | changes)


def test_a_seed_is_refused_on_a_cpu():
    """A visitor's seed that ends the worker, and the server, where a prompt comes in pieces."""
    SpanRequests.validate_params(vllm.SamplingParams(temperature=0.5))
    with pytest.raises(ValueError, match="selfspan: leave out the seed"):
        SpanRequests.validate_params(vllm.SamplingParams(temperature=0.5, seed=1))


REFUSED = {
    "--speculative-config": {"speculative_config": object()},
    "--no-async-scheduling": {"scheduler_config": SimpleNamespace(async_scheduling=True)},
    "VLLM_USE_V2_MODEL_RUNNER=0": {"use_v2_model_runner": True},
    "--pipeline-parallel-size": {"parallel_config": SimpleNamespace(**ROOMY | {"pipeline_parallel_size": 2})},
    "--decode-context-parallel-size": {
        "parallel_config": SimpleNamespace(**ROOMY | {"decode_context_parallel_size": 2})
    },
    "--kv-cache-dtype": {"cache_config": SimpleNamespace(cache_dtype="int8_per_token_head")},
    "--enable-prompt-embeds": {"model_config": SimpleNamespace(enable_prompt_embeds=True)},
    "--kv-transfer-config": {"kv_transfer_config": object()},
}


def test_late_ids_are_known_to_a_worker_of_ours_on_cuda_alone(registered):
    """A CPU's steps, for which nobody follows ids on the device, planned before their ids are known."""
    late = {"scheduler_config": SimpleNamespace(async_scheduling=True)}
    ours = config(**late, parallel_config=SimpleNamespace(**ROOMY | {"worker_cls": support.SPAN_WORKER}))
    assert support._setting_problem(ours, True) is None
    assert "--no-async-scheduling" in (support._setting_problem(config(**late), True) or "")
    with pytest.raises(ImplUnavailable, match="--no-async-scheduling"):
        support.require_supported(ours)


@pytest.fixture
def registered():
    """The plugin, registered as vLLM does it."""
    (found,) = (one for one in entry_points(group="vllm.general_plugins") if one.name == "selfspan")
    found.load()()
    yield
    for name in support.BACKENDS:
        AttentionBackendEnum[name].clear_override()


@pytest.mark.parametrize("option", REFUSED)
def test_what_cannot_be_right_is_refused_by_the_option_that_says_so(registered, option):
    """Speculative decoding, whose drafts no tracker followed; ids that are not known when a step is planned."""
    support.require_supported(config())
    with pytest.raises(ImplUnavailable, match=option):
        support.require_supported(config(**REFUSED[option]))


def test_vllm_itself_takes_no_logits_processor_beside_drafts():
    """A vLLM that leaves the plugin out without a word, so that self-selected requests read everything."""
    with pytest.raises(ValueError, match="speculative decoding"):
        build_logitsprocs(
            config(speculative_config=object()), torch.device("cpu"), False, False, (support.SPAN_REQUESTS,)
        )


def test_versions_devices_and_backends_are_looked_at(registered, monkeypatch):
    """A plugin that runs in a vLLM that it does not know, or whose backend is not the one that attends."""
    assert AttentionBackendEnum.CPU_ATTN.get_class().get_name() == "CPU_ATTN"
    with monkeypatch.context() as patch:
        patch.setattr(type(current_platform), "is_cpu", lambda self: False)
        with pytest.raises(ImplUnavailable, match="runs on CPUs and on CUDA, not on"):
            support.require_supported(config())
    for name in support.BACKENDS:
        AttentionBackendEnum[name].clear_override()
    with pytest.raises(ImplUnavailable, match="VLLM_PLUGINS"):
        support.require_supported(config())
    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    with pytest.raises(ImplUnavailable, match=r"0\.99\.0"):
        support.require_supported(config())
    register()
    assert not AttentionBackendEnum.CPU_ATTN.is_overridden()


LAYER = {"sliding_window": -1, "alibi_slopes": None, "logits_soft_cap": 0, "sinks": None, "attn_type": "decoder"}
MORE = [{"sliding_window": 64}, {"alibi_slopes": 1}, {"logits_soft_cap": 30.0}, {"sinks": 1}, {"attn_type": "encoder"}]


@pytest.mark.parametrize("change", MORE, ids=lambda change: next(iter(change)))
def test_attention_that_is_more_than_softmax_is_refused(change):
    """A sliding window that self-selected queries would ignore."""
    assert support.layer_problem(SimpleNamespace(**LAYER)) is None
    assert "this model's attention" in support.layer_problem(SimpleNamespace(**LAYER | change))
