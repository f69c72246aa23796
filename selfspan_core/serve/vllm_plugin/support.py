"""What of vLLM is supported, and an error for the rest. vLLM is imported when it is asked for only."""

from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from selfspan_core.errors import ImplUnavailable, SettingError
from selfspan_core.models.marker_ids import CONFIG_KEY, read_from_config
from selfspan_core.spans.protocol import Markers

if TYPE_CHECKING:
    from vllm.config import VllmConfig

VERSIONS = SpecifierSet(">=0.26,<0.33")
"""Of vLLM; tests run with the last one."""
BACKEND_ON_CUDA = "FLASH_ATTN"
BACKENDS = {
    "CPU_ATTN": "selfspan_core.serve.vllm_plugin.cpu_backend.SelfSelectedCPUBackend",
    BACKEND_ON_CUDA: "selfspan_core.serve.vllm_plugin.cuda_backend.SelfSelectedCUDABackend",
}
"""By vLLM's names of attention backends: the classes that take their places, on CPUs and on CUDA."""
ONE_ID_TOO_MANY = SpecifierSet("<0.32")
"""Versions of vLLM that take an id for a model's which is one too large: see CHECKED_TOKENIZER."""
CHECKED_TOKENIZER = ("selfspan_core.serve.vllm_plugin.tokenizer", "CheckedTokenizer")
"""Module and class that take the place of vLLM's own tokenizer there."""
SPAN_REQUESTS = "selfspan_core.serve.vllm_plugin.span_requests:SpanRequests"
"""For vLLM's option `--logits-processors`: it switches self-selected attention on."""

SPAN_WORKER = "selfspan_core.serve.vllm_plugin.worker.SpanWorker"
"""For vLLM's option `--worker-cls`, on CUDA: with it asynchronous scheduling works."""

CACHE_TYPES = ("auto", "float16", "bfloat16", "float32")
"""Of vLLM's option `--kv-cache-dtype`: numbers as they are. It grows ever more others."""

NO_SEED = "selfspan: leave out the seed: on a CPU vLLM ends for everybody over one where a prompt comes in pieces"
"""What whoever gives one is told there."""

LATE_IDS = f"asynchronous scheduling: add --no-async-scheduling or, on CUDA, --worker-cls {SPAN_WORKER}"
"""Why ids that the host hears of a step late are refused, and what to do."""


def version_problem(version: str) -> str | None:
    """Why a version of vLLM is not supported, in words; None if it is."""
    try:
        is_supported = VERSIONS.contains(Version(version), prereleases=True)
    except InvalidVersion:
        is_supported = False
    return None if is_supported else f"vLLM {version} is not supported; versions {VERSIONS} are"


def counts_one_too_many(version: str) -> bool:
    """Whether a supported version of vLLM lets a request through with an id that no model has."""
    return ONE_ID_TOO_MANY.contains(Version(version), prereleases=True)


def require_no_seed(seed: int | None) -> None:
    """Refuse a seed on CPUs: vLLM's generators there end the worker where a prompt comes in pieces.

    Raises:
        SettingError: there is a seed, and this is a CPU.
    """
    from vllm.platforms import current_platform

    if seed is not None and current_platform.is_cpu():
        raise SettingError(NO_SEED)


def is_switched_on(config: "VllmConfig") -> bool:
    """Whether vLLM was started with self-selected attention."""
    given = config.model_config.logits_processors or ()
    return any(one == SPAN_REQUESTS or getattr(one, "__name__", "") == SPAN_REQUESTS.split(":")[1] for one in given)


def require_supported(config: "VllmConfig") -> None:
    """Refuse what self-selected attention cannot be right with, when vLLM starts.

    Raises:
        ImplUnavailable: the version, the device or a setting; the message names the option.
    """
    import vllm
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    problem = version_problem(vllm.__version__)
    if problem is not None:
        raise ImplUnavailable(problem)
    if not current_platform.is_cpu() and not current_platform.is_cuda():
        raise ImplUnavailable(
            f"self-selected attention in vLLM runs on CPUs and on CUDA, not on {current_platform.device_name!r}"
        )
    name = "CPU_ATTN" if current_platform.is_cpu() else BACKEND_ON_CUDA
    if AttentionBackendEnum[name].get_path() != BACKENDS[name]:
        raise ImplUnavailable(
            "vLLM did not load the plugin selfspan: VLLM_PLUGINS leaves it out, or another follows it"
        )
    is_cuda = current_platform.is_cuda()
    problem = _setting_problem(config, is_cuda) or (_cuda_problem(config) if is_cuda else None)
    if problem is not None:
        raise ImplUnavailable(f"self-selected attention does not work with {problem}")


def _setting_problem(config: "VllmConfig", is_cuda: bool) -> str | None:
    """The first setting that cannot be, in words."""
    parallel, scheduler = config.parallel_config, config.scheduler_config
    knows_ids = not scheduler.async_scheduling or (is_cuda and parallel.worker_cls == SPAN_WORKER)
    problems = (
        (config.speculative_config is not None, "speculative decoding: leave out --speculative-config"),
        (not knows_ids, LATE_IDS),
        (bool(config.use_v2_model_runner), "vLLM's model runner V2: set VLLM_USE_V2_MODEL_RUNNER=0"),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism: leave out --pipeline-parallel-size"),
        (parallel.decode_context_parallel_size > 1, "context parallelism: leave out --decode-context-parallel-size"),
        (config.cache_config.cache_dtype not in CACHE_TYPES, "a quantized cache: leave out --kv-cache-dtype"),
        (bool(config.model_config.enable_prompt_embeds), "prompts without ids: leave out --enable-prompt-embeds"),
        (
            config.kv_transfer_config is not None,
            "keys and values of others: leave out --kv-transfer-config and --kv-offloading-size",
        ),
    )
    return next((words for is_so, words in problems if is_so), None)


def _cuda_problem(config: "VllmConfig") -> str | None:
    """The first setting that the paged kernel cannot serve, in words."""
    from cuda_kernels.checks import MAX_BATCH
    from cuda_kernels.compile import HEAD_DIMS
    from cuda_kernels.device import DTYPES

    model, num_rows = config.model_config, config.scheduler_config.max_num_seqs
    backend = getattr(config.attention_config.backend, "name", BACKEND_ON_CUDA)
    problems = (
        (backend != BACKEND_ON_CUDA, f"{backend}: add --attention-backend {BACKEND_ON_CUDA}"),
        (num_rows > MAX_BATCH, f"{num_rows} rows: add --max-num-seqs {MAX_BATCH}"),
        (model.dtype not in DTYPES, f"{model.dtype} on CUDA: add --dtype bfloat16"),
        (model.get_head_size() not in HEAD_DIMS, f"a head_dim of {model.get_head_size()} on CUDA"),
    )
    return next((words for is_so, words in problems if is_so), None)


def layer_problem(impl: Any) -> str | None:
    """Why a layer's attention cannot be self-selected, in words: it does more than softmax over what is visible."""
    problems = (
        (impl.sliding_window not in (-1, None, (-1, -1)), "a sliding window"),
        (impl.alibi_slopes is not None, "ALiBi"),
        (bool(impl.logits_soft_cap), "capped scores"),
        (impl.sinks is not None, "attention sinks"),
        (str(getattr(impl.attn_type, "value", impl.attn_type)) != "decoder", "an encoder"),
    )
    return next((f"this model's attention has {words}" for is_so, words in problems if is_so), None)


def markers_of(config: "VllmConfig") -> Markers:
    """The marker ids of the served model. Raises ModelError if its config.json does not name them."""
    return read_from_config(getattr(config.model_config.hf_config, CONFIG_KEY, None), config.model_config.model)
