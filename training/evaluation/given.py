"""Inputs that somebody wrote, to be answered in an evaluation: of kinds that no generator makes."""

import json
from pathlib import Path

from selfspan_core.errors import InputError
from selfspan_core.tasks.base import Problem, Task


def given_problems(task: Task, path: Path) -> list[Problem]:
    """The problems of a file: a JSON list of objects with `text`, the input, and `expected`, the right answer.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such list, or an answer is not what the task says.
    """
    try:
        given = [(one["text"], one["expected"]) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"{path} is no list of objects with text and expected") from None
    if not given:
        raise ValueError(f"{path} has no inputs")
    problems = []
    for number, (text, expected) in enumerate(given, start=1):
        try:
            problem = task.parse(text)
        except InputError as error:
            raise ValueError(f"input {number} of {path}: {error}") from None
        if problem.expected != expected:
            raise ValueError(f"input {number} of {path}: the answer is {problem.expected!r}, not {expected!r}")
        problems.append(problem)
    return problems
