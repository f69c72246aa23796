"""The tasks by name. A new one is a folder beside this file and a line in TASKS."""

from typing import Any

from selfspan_core.errors import InputError
from selfspan_core.tasks.arithmetic.task import Arithmetic
from selfspan_core.tasks.base import Option, Task
from selfspan_core.tasks.summarize.task import Summarize
from selfspan_core.tasks.trace.task import Trace

TASKS: dict[str, type[Task[Any]]] = {"arithmetic": Arithmetic, "summarize": Summarize, "trace": Trace}


def get_task(name: str, **options: Any) -> Task[Any]:
    """The task called `name`.

    Args:
        options: of the task (`Task.options`), by name; None means the task's default.

    Raises:
        InputError: there is no such task (the message lists the known ones), the task has no such option, or the
            option has no such value.
    """
    if name not in TASKS:
        raise InputError(f'There is no task "{name[:40]}"; known tasks: {", ".join(TASKS)}.')
    given = {option: value for option, value in options.items() if value is not None}
    known = {option.name for option in TASKS[name].options}
    for option in given:
        if option not in known:
            raise InputError(_why_no_option(name, option))
    return TASKS[name](**given)


def task_options() -> list[Option]:
    """The options of all tasks, each once."""
    return list({option.name: option for task in TASKS.values() for option in task.options}.values())


def _why_no_option(name: str, option: str) -> str:
    owners = [task.answers for task in TASKS.values() if any(one.name == option for one in task.options)]
    if not owners:
        return f"The task {name} has no option {option[:40]!r}."
    return f"The {option} is for {' and '.join(owners)}: the task {name} has none."
