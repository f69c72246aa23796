"""Names of the logits processor that forces recorded ids in vLLM, for whoever asks one without importing vLLM."""

FORCED = "training.bench.forced_in_vllm:ForcedIds"
"""For vLLM's option `--logits-processors`."""
KEY = "forced"
"""In a request's extra arguments: the ids of its answer."""
