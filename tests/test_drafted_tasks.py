"""Every task's greedy answers with drafts and without, by its own prompts, hints and rules: the same ids."""

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.batch_step import BatchStep
from selfspan_core.engine.decode_loop import DecodeLoop
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Event, Failed, Token
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.params import Drafts, SamplingParams
from selfspan_core.tasks.base import Problem, Task
from selfspan_core.tasks.registry import TASKS, get_task
from selfspan_core.tasks.summarize.task import SummaryStep, problem_of
from tests.support.paths import SHIPPED
from tests.support.slow import sampled
from tests.support.summary_tools import article
from tests.support.taught_models import taught_model
from training.data.generated import evaluation_set

TOKENIZER = SpanTokenizer.load(SHIPPED)
MOST_TOKENS = 160
LANES = {"span sparse": (True, "sparse"), "span dense": (True, "dense"), "plain dense": (False, "dense")}
"""Whether names are written, and the attention."""
CASES = [
    *(("arithmetic", operands, seed) for seed, operands in enumerate((4, 24, 9, 16))),
    *(("trace", steps, seed) for seed, steps in enumerate((10, 40, 24))),
    *(("summarize", sentences, seed) for seed, sentences in enumerate((8, 14))),
]
"""A task, the size of a problem, and the seed of the problem and of a model's weights."""
SAMPLE = [("arithmetic", 4, 0), ("trace", 10, 0), ("summarize", 8, 0)]


@dataclass(frozen=True)
class World:
    """One lane of a task: a problem, and an engine whose model learned a part of its worked steps.

    Attributes:
        task, problem, engine: these.
        annotated, attention: of LANES.
    """

    task: Task
    problem: Problem
    engine: Engine
    annotated: bool
    attention: str

    def request(self, drafts: Drafts, impl: str) -> PromptRequest:
        """What a session would ask of the engine."""
        prompt = self.task.render(self.problem, TOKENIZER, self.annotated)
        rules = self.engine.rules(self.task.rules(prompt, TOKENIZER, self.annotated), impl).rules
        request = PromptRequest(prompt, self.annotated, SamplingParams(MOST_TOKENS), rules)
        hints = self.task.draft_hints(TOKENIZER)
        return replace(request, drafter=self.engine.drafter(request, hints, drafts, self.attention, impl))

    def written(self, drafts: Drafts, impl: str) -> list[Token]:
        """One answer, by the step on the host or by captured ones with PyTorch's operations."""
        request = self.request(drafts, impl)
        events: Iterator[Event] = iter(())
        if impl == "gather":
            events = self.engine.generate(request, self.attention)
        else:
            is_ruled = request.host_rules is not None, request.device_rules is not None
            capacity = request.prompt.prompt.num_tokens + MOST_TOKENS
            shape = BatchShape(1, capacity, self.attention == "dense", is_ruled[0], drafts, is_ruled[1])
            step = BatchStep(self.engine.model.weights, TOKENIZER.markers, shape)
            events = (event for _, event in DecodeLoop(step).generate([request]))
        found = []
        for event in events:
            assert not isinstance(event, Failed), event.error
            found += [event] if isinstance(event, Token) else []
        return found


@functools.cache
def world(name: str, size: int, seed: int, lane: str) -> World:
    """A lane of a case; made once, for both kinds of steps."""
    task, (annotated, attention) = get_task(name), LANES[lane]
    if name == "summarize":
        sentences = article(random.Random(seed), size)
        problem = problem_of(sentences, steps=[SummaryStep((at,), sentences[at]) for at in (1, 4, 5)])
    else:
        (problem,) = evaluation_set(task, size, 1, seed)
    example = task.render(problem, TOKENIZER, annotated, with_steps=True)
    model = taught_model(seed, TOKENIZER.vocab_size, example, attention == "sparse")
    return World(task, problem, Engine(model, TOKENIZER.markers), annotated, attention)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(("name", "size", "seed"), sampled(CASES, SAMPLE))
def test_drafted_answers_are_the_undrafted_ones(name, size, seed, lane):
    """Would catch a task's hints, recurring lines or rules by which a draft is kept that would not have been written.

    One kept too many, a query of a draft that sees what the id before it sees, or rules told of an id that was undone.
    """
    made = world(name, size, seed, lane)
    for impl in ("gather", "captured"):
        plain = [token.id for token in made.written("off", impl)]
        num_right = num_wrong = 0
        for drafts in ("auto", 3, 15):
            tokens = made.written(drafts, impl)
            assert [token.id for token in tokens] == plain, (impl, drafts)
            num_right += tokens[-1].num_accepted
            num_wrong += tokens[-1].num_drafted - tokens[-1].num_accepted
        # Without drafts of both kinds nothing was tested; how many there are with "auto" the clock decides.
        assert num_right > 10 and num_wrong > 0, impl


def test_every_task_is_among_the_cases():
    """Would catch a new task whose drafts nobody compares."""
    assert set(TASKS) == {name for name, _, _ in CASES}
