"""Where a task's evaluation writes its figures, and where the report finds them."""

from selfspan_core.models.registry import DEFAULT_MODEL


def results_path(task: str, model: str = DEFAULT_MODEL) -> str:
    """Path of the results file of a task with a registered model, from the project's root."""
    return f"assets/results/{task}.json" if model == DEFAULT_MODEL else f"assets/results/{task}_{model}.json"
