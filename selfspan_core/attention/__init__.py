"""Attention over visible intervals: the oracle, readers, the KV cache, and what can run where."""
