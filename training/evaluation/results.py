"""Where a task's evaluation writes its figures, and where the report finds them."""

from selfspan_core.models.registry import DEFAULT_MODEL

INPUTS = "inputs"
"""Among results, in place of a generator's sizes, where inputs were given."""


def results_path(task: str, model: str = DEFAULT_MODEL, is_given: bool = False) -> str:
    """Path of the results file of a task with a registered model, from the project's root.

    Args:
        is_given: of inputs that were given, not of the generator's problems.
    """
    name = task if model == DEFAULT_MODEL else f"{task}_{model}"
    return f"assets/results/{name}_{INPUTS}.json" if is_given else f"assets/results/{name}.json"
