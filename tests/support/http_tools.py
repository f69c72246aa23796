"""Prompts for a server that decodes, and engines on one."""

from selfspan_core.serve.http_engine.served import engines_at
from selfspan_core.serve.http_engine.store import ServedStore
from selfspan_core.tasks.registry import get_task

TASK = get_task("arithmetic")
TEXT = "79*36+63"


def prompt_of(tokenizer, text=TEXT, annotated=True):
    return TASK.render(TASK.parse(text), tokenizer, annotated=annotated)


def engine_at(address):
    return ServedStore(engines_at(address)).engine("arithmetic", "span")
