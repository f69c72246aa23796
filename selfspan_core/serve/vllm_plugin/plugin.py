"""The entry point `vllm.general_plugins`: called in every process of vLLM, whatever it serves.

It only says which class attends. That class does what vLLM's own does until a vLLM is started with
`--logits-processors` and `support.SPAN_REQUESTS`.
"""

import logging

from selfspan_core.serve.vllm_plugin.support import CPU_BACKEND, version_problem


def register() -> None:
    """Put the attention backend into vLLM's registry, in a version of vLLM that is supported.

    In another one nothing is registered, so that a vLLM that serves something else goes on working; where self-selected
    attention is asked for, `support.require_supported` raises an error.
    """
    import vllm
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    problem = version_problem(vllm.__version__)
    if problem is not None:
        logging.getLogger(__name__).warning("selfspan's plugin is not registered: %s", problem)
        return
    register_backend(AttentionBackendEnum.CPU_ATTN, CPU_BACKEND)
