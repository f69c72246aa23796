"""Where a task's evaluation writes its figures, and where the report finds them."""


def results_path(task: str) -> str:
    """Path of a task's results file from the project's root."""
    return f"assets/results/{task}.json"
