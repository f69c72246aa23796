"""Declared spans in vLLM: a plugin that uses vLLM's registries only. Nothing is imported here.

`plugin` registers the attention backend, `span_requests` follows requests inside a worker, `cpu_backend` attends;
`settings` and `client` are for whoever sends requests, and need no vLLM.
"""
