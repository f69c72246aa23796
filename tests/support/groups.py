"""Which tests share a worker: those that need a browser or a server, and otherwise those of one module."""

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

SERVED = {
    *(
        "test_api",
        "test_app",
        "test_app_access",
        "test_app_articles",
        "test_app_firefox",
        "test_app_input",
        "test_app_keep",
        "test_app_load",
        "test_app_map",
        "test_app_shipped",
        "test_app_tasks",
    ),
    *("test_crowd", "test_models_registry", "test_offered", "test_serving", "test_tools", "test_toy_task"),
    "test_zero_gpu",
}
"""Modules with a browser or a server; another of their kind at the same time would disturb them."""
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
