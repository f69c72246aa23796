"""Which tests share a worker: those that need a browser or a server, and otherwise those of one module."""

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

BROWSERS = (
    *("app", "app_access", "app_arrival", "app_articles", "app_code", "app_figures", "app_firefox", "app_form"),
    *("app_input", "app_keep", "app_load", "app_map", "app_shipped", "app_tasks"),
    *("models_registry", "offered", "toy_task"),
)
SERVERS = ("api", "crowd", "serving", "tools", "trace_served", "visitors", "zero_gpu")
SERVED = {f"test_{name}" for name in (*BROWSERS, *SERVERS)}
"""Modules with a browser or a server. All are one scope: a page draws for as long as it waits, so that two browsers on
two cores take longer, side by side, than one after the other."""
LONG = ("test_gemm_wgmma", "test_kernel", "test_summary_training", "test_training", "test_kernel_sources")
"""Modules that would leave one worker alone at the end, if they were begun late."""


def place(module: str) -> int:
    """Where in the queue a module stands."""
    if module in SERVED:
        return 0
    return 1 + LONG.index(module) if module in LONG else 1 + len(LONG)


class ByModule(LoadScopeScheduling):
    """xdist's scheduler of scopes; a scope is all of `SERVED`, or any other module."""

    def _split_scope(self, nodeid: str) -> str:
        module = PurePosixPath(nodeid.partition("::")[0]).stem
        return "served" if module in SERVED else module
