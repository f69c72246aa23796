"""The tasks by name."""

from selfspan_core.tasks.base import InputError, Task

TASK_NAMES = ("arithmetic", "summarize")


def get_task(name: str, length: str | None = None) -> Task:
    """The task called `name`.

    Args:
        length: of summaries, "short" or "medium"; for no other task.

    Raises:
        InputError: there is no such task (the message lists the known ones) or length, or the task has none.
    """
    if name == "summarize":
        from selfspan_core.tasks.summarize.task import Summarize

        return Summarize() if length is None else Summarize(length)
    if name == "arithmetic":
        from selfspan_core.tasks.arithmetic.task import Arithmetic

        if length is not None:
            raise InputError("The length is for summaries: the task arithmetic has none.")
        return Arithmetic()
    raise InputError(f'There is no task "{name[:40]}"; known tasks: {", ".join(TASK_NAMES)}.')
