"""Which tests share a worker: those with a browser or a server, in two halves, and otherwise those of one module."""

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

FIRST = (
    *("app", "app_access", "app_arrival", "app_articles", "app_code", "app_figures", "app_firefox", "app_form"),
    *("api", "crowd", "serving", "tools", "trace_served", "visitors", "zero_gpu"),
)
SECOND = (
    *("app_input", "app_keep", "app_load", "app_map", "app_shipped", "app_tasks"),
    *("models_registry", "offered", "toy_task"),
)
SERVED = {f"test_{name}": scope for scope, names in (("first", FIRST), ("second", SECOND)) for name in names}
"""Modules with a browser or a server, and the scope of each. Two scopes of about the same time: more browsers at once
take longer, on two cores, than one after the other, since a page draws for as long as it waits."""
LONG = ("test_gemm_wgmma", "test_kernel", "test_summary_training", "test_training", "test_kernel_sources")
"""Modules that would leave one worker alone at the end, if they were begun late."""


def place(module: str) -> int:
    """Where in the queue a module stands."""
    if module in SERVED:
        return 0
    return 1 + LONG.index(module) if module in LONG else 1 + len(LONG)


class ByModule(LoadScopeScheduling):
    """xdist's scheduler of scopes: those of `SERVED`, and each other module."""

    def _split_scope(self, nodeid: str) -> str:
        module = PurePosixPath(nodeid.partition("::")[0]).stem
        return SERVED.get(module, module)
