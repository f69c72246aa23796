"""Which tests share a worker: those that need a browser or a server, and otherwise those of one module."""

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

RACES = ("app", "app_firefox", "app_input", "app_load", "app_map", "app_shipped", "crowd")
TABS = ("api", "app_access", "app_articles", "app_keep", "app_tasks", "models_registry", "offered", "serving", "tools")
SERVED = {
    **{f"test_{name}": "races" for name in RACES},
    **{f"test_{name}": "tabs" for name in (*TABS, "toy_task", "zero_gpu")},
}
"""Modules with a browser or a server, in two groups of which each stays in one worker and takes about as long as the
other: three browsers on two cores would disturb each other."""
LONG = ("test_gemm_wgmma", "test_kernel", "test_summary_training", "test_training", "test_kernel_sources")
"""Modules that would leave one worker alone at the end, if they were begun late."""


def place(module: str) -> int:
    """Where in the queue a module stands."""
    if module in SERVED:
        return 0
    return 1 + LONG.index(module) if module in LONG else 1 + len(LONG)


class ByModule(LoadScopeScheduling):
    """xdist's scheduler of scopes; a scope is a group of `SERVED`, or any other module."""

    def _split_scope(self, nodeid: str) -> str:
        module = PurePosixPath(nodeid.partition("::")[0]).stem
        return SERVED.get(module, module)
