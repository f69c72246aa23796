"""Measure a task's answers: `python -m training.evaluate --task TASK`.

What follows is the business of the kind of evaluation that the task names; `--task TASK --help` shows its options. See
`evaluation.problem_evaluate` and `evaluation.summary_evaluate`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:
    # Run as a file (`python training/evaluate.py`): Python looks for modules in this folder, whose names (config,
    # metrics, evaluate) could hide other packages, and not in the repository.
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parent), *(entry for entry in sys.path if Path(entry).resolve() != _FOLDER)]

from selfspan_core.tasks.base import EvaluationKind
from selfspan_core.tasks.registry import TASKS
from training.evaluation import problem_evaluate, summary_evaluate

EVALUATIONS: dict[EvaluationKind, Callable[[str, Sequence[str]], None]] = {
    "problems": problem_evaluate.main,
    "summaries": summary_evaluate.main,
}
"""What evaluates a task of each kind (`Task.evaluation`), called with the task's name and the command line."""


def main() -> None:
    """Entry point."""
    words = sys.argv[1:]
    task = asked_task(words)
    EVALUATIONS[TASKS[task].evaluation](task, words)


def asked_task(words: Sequence[str]) -> str:
    """The task named on a command line, by default the first one; each kind of evaluation has options of its own."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--task", default=next(iter(TASKS)), choices=list(TASKS))
    return parser.parse_known_args(words)[0].task


if __name__ == "__main__":
    main()
