"""Endless problems of any task that has a generator, for training and for evaluation.

Every stream is a function of (task, seed, worker) alone. A fixed part of the problems, chosen by their text, is kept
for evaluation: `problems` and `examples` never yield one, `evaluation_set` yields nothing else.
"""

import random
from collections.abc import Iterator

from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.spans.protocol import NUM_ANCHORS
from selfspan_core.spans.render import Rendered
from selfspan_core.tasks.base import Task, WorkedProblem

PATIENCE = 100


def problems(task: Task, seed: int, worker: int = 0, variant: str = "") -> Iterator[WorkedProblem]:
    """Training problems without end; streams of different workers or seeds are independent."""
    rng = random.Random(f"{task.name} {seed} {worker}")
    generator = task.generator
    while True:
        yield generator.problem(rng, generator.training_size(rng), held_out=False, variant=variant)


def examples(
    task: Task, tokenizer: SpanTokenizer, annotated: bool, seed: int, worker: int, variant: str = ""
) -> Iterator[Rendered]:
    """Rendered training examples without end, at most `task.max_tokens` each; names start at a random anchor.

    The same (seed, worker) gives the same problems whether `annotated` or not.
    """
    offsets = random.Random(f"names {seed} {worker}")
    for problem in problems(task, seed, worker, variant):
        rendered = task.render(problem, tokenizer, annotated, offsets.randrange(NUM_ANCHORS), with_steps=True)
        if len(rendered.ids) <= task.max_tokens:
            yield rendered


def evaluation_set(task: Task, size: int, n: int, seed: int) -> list[WorkedProblem]:
    """`n` different problems of a size that no training stream ever yields.

    Raises:
        ValueError: there are not that many different ones (happens only at the smallest sizes).
    """
    rng = random.Random(f"evaluation {seed} {size}")
    found: dict[str, WorkedProblem] = {}
    draws_without_new = 0
    while len(found) < n:
        problem = task.generator.problem(rng, size, held_out=True)
        draws_without_new += 1
        if problem.text not in found:
            found[problem.text] = problem
            draws_without_new = 0
        if draws_without_new > PATIENCE:
            counted = f"{size} {task.generator.size_name}"
            raise ValueError(f"found only {len(found)} different problems of {counted}, not {n}")
    return list(found.values())
