"""The entry point `vllm.general_plugins`: called in every process of vLLM, whatever it serves.

It says which classes attend, on CPUs and on CUDA. They do what vLLM's own does until a vLLM is started with
`--logits-processors` and `support.SPAN_REQUESTS`. In versions where one request with a wrong id ends the server for
all, it also says which class reads tokenizers.
"""

import logging

from selfspan_core.serve.vllm_plugin.support import BACKENDS, CHECKED_TOKENIZER, counts_one_too_many, version_problem


def register() -> None:
    """Put the attention backends into vLLM's registry, in a version of vLLM that is supported.

    In another one nothing is registered, so that a vLLM that serves something else goes on working; where self-selected
    attention is asked for, `support.require_supported` raises an error.
    """
    import vllm
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    problem = version_problem(vllm.__version__)
    if problem is not None:
        logging.getLogger(__name__).warning("selfspan's plugin is not registered: %s", problem)
        return
    for name, path in BACKENDS.items():
        register_backend(AttentionBackendEnum[name], path)
    if counts_one_too_many(vllm.__version__):
        from vllm.tokenizers import TokenizerRegistry

        # Not by `register`, which warns of every class that is replaced.
        TokenizerRegistry.tokenizers["hf"] = CHECKED_TOKENIZER
