"""A model in vLLM beside the same model in the project's own engine. Needs vLLM: `make test-vllm`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Token
from selfspan_core.models.export import export_merged
from selfspan_core.models.model import SpanModel
from selfspan_core.paths import ADAPTERS
from selfspan_core.serve.vllm_plugin.client import Asked, account_of
from selfspan_core.serve.vllm_plugin.support import SPAN_REQUESTS
from tests.support.asking import generate

PAGE_SIZE = 32
TIE = 1e-3
"""Logits nearer than that may come in either order: both engines sum in float32, in different orders."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, so that tests can look at it
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


class Beside:
    """A shipped model with a task's span adapter, in vLLM and in the project's own engine, both in float32.

    Args:
        task: whose adapter it is.
        folder: where the merged model is written.
        num_pages: of vLLM's cache, PAGE_SIZE tokens each: few, so that requests that run together are preempted.
        options: of vLLM.
    """

    def __init__(self, task: str, folder: Path, num_pages: int, **options: Any) -> None:
        os.environ.update(ENVIRONMENT)
        import vllm

        export_merged("selfspan-17m", ADAPTERS / f"{task}-span", folder, "float32")
        model = SpanModel.load(folder)
        self.tokenizer, self.engine = model.tokenizer, Engine(model, model.tokenizer.markers)
        self.llm = vllm.LLM(
            str(folder),
            dtype="float32",
            enforce_eager=True,
            block_size=PAGE_SIZE,
            num_gpu_blocks_override=num_pages,
            logits_processors=[SPAN_REQUESTS],
            disable_log_stats=False,
            **options,
        )

    def close(self) -> None:
        """End vLLM, as far as it lets itself be ended in its own process."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        cleanup_dist_env_and_memory()

    def answers(self, asked: Sequence[Asked], **sampling: Any) -> list:
        """vLLM's outputs, all requests at once. No seeds: on CPUs vLLM fails on one where a prompt comes in pieces."""
        from vllm import SamplingParams

        common = {"temperature": 0.0, "detokenize": False} | sampling
        each = [SamplingParams(**common, extra_args=one.extra_args) for one in asked]
        return self.llm.generate([one.prompt for one in asked], each, use_tqdm=False)

    def own_logits(self, asked: Asked, ids: Sequence[int]) -> torch.Tensor:
        """Float32 `[len(ids), vocab]`: from what the project's own engine would have drawn each of these ids."""
        events = generate(self.engine, asked.rendered, asked.attention, forced_tokens=list(ids), with_logits=True)
        return torch.stack([event.logits.float() for event in events if isinstance(event, Token)])

    def own_ids(self, asked: Asked, most: int) -> list[int]:
        """What the project's own engine answers, greedy."""
        events = generate(self.engine, asked.rendered, asked.attention, max_new_tokens=most)
        return [event.id for event in events if isinstance(event, Token)]

    def difference(self, asked: Asked, ids: Sequence[int], most: int) -> str:
        """How a greedy answer differs from the own engine's; empty if it does not, or only behind a near tie."""
        own = self.own_ids(asked, most)
        place = next((i for i, pair in enumerate(zip(ids, own, strict=False)) if pair[0] != pair[1]), None)
        if place is None:
            return "" if len(ids) == len(own) else f"{len(ids)} ids, not {len(own)}"
        logits = self.own_logits(asked, own[: place + 1])[place]
        gap = float(logits[own[place]] - logits[ids[place]])
        return "" if gap < TIE else f"id {place} is {ids[place]}, not {own[place]}, whose logit is {gap} larger"

    def logprob_errors(self, asked: Asked, output: Any) -> torch.Tensor:
        """By how much vLLM's log probability of each id that it drew differs from the own engine's."""
        ids = list(output.token_ids)
        theirs = torch.tensor([told[token].logprob for token, told in zip(ids, output.logprobs, strict=True)])
        own = self.own_logits(asked, ids).log_softmax(-1)
        return (theirs - own[torch.arange(len(ids)), torch.tensor(ids)]).abs()

    def account(self, asked: Asked, ids: Sequence[int]):
        """Steps and reads of an answer."""
        return account_of(ids, asked, self.tokenizer.markers)

    def metric(self, name: str) -> int:
        """One of vLLM's counters."""
        return sum(one.value for one in self.llm.get_metrics() if one.name == f"vllm:{name}")

    @property
    def rows(self):
        """What the worker follows and counts."""
        core = self.llm.llm_engine.engine_core.engine_core
        runner = core.model_executor.driver_worker.worker.model_runner
        (one,) = (one for one in runner.input_batch.logitsprocs.all if type(one).__name__ == "SpanRequests")
        return one.rows
