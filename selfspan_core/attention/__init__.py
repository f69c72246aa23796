"""Attention over visible intervals: the reference, the readers, the KV cache, and which implementation runs where."""
