"""Tracing: programs in a small subset of Python, run one line a step."""
