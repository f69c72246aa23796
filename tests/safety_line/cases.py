"""What the safety line asks of the models, and how it is asked: prompts, ways of decoding, and nothing of the ids.

Only `Ways` touches the engines: where their calls change, it changes, and the recorded ids stay.
"""

import functools
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.events import Failed, Token
from selfspan_core.engine.model_store import ModelStore
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.params import SamplingParams
from selfspan_core.spans.render import Rendered
from selfspan_core.tasks.arithmetic.task import random_problem
from selfspan_core.tasks.registry import get_task
from selfspan_core.tasks.summarize.form import MAX_SUMMARY_TOKENS

SIZES = {4: 60, 8: 60, 16: 40, 32: 24, 64: 16}
"""Operands -> expressions."""
NUM_ARTICLES = 40
LANES = {"span-sparse": ("sparse", "span"), "span-dense": ("dense", "span"), "plain-dense": ("dense", "plain")}
BATCH_ROWS = 16
MAX_LISTED = 4096


@dataclass(frozen=True)
class Case:
    """One input in one lane.

    Attributes:
        name: unique and stable.
        task, length, text: as a user would give them.
        lane: one of LANES.
        way: "token by token" or "rows together".
        number: of the input.
    """

    name: str
    task: str
    length: str | None
    text: str
    lane: str
    way: str
    number: int


@functools.cache
def expressions() -> list[str]:
    """200 expressions that training never saw, the same ones every time."""
    rng = random.Random("safety line")
    return [random_problem(rng, size, held_out=True).text for size, count in SIZES.items() for _ in range(count)]


@functools.cache
def articles() -> list[tuple[str, str]]:
    """40 articles in both lengths, as (length, text): the examples, whole, cut short, and their sentences reordered."""
    task = get_task("summarize")
    parsed = [task.parse(text) for text in task.examples]
    texts = [problem.text for problem in parsed]
    # The shortest is some 180 words; so are the shortest beginnings.
    texts += [" ".join(problem.sentences[:count]) for problem in parsed[1:] for count in (8, 14, 20)]
    for problem in parsed:
        others = task.similar(problem, seed=len(texts))
        texts += [next(others).text for _ in range(12)]
    return [(length, text) for text in texts[:NUM_ARTICLES] for length in ("short", "medium")]


def cases(task: str | None = None) -> list[Case]:
    """Everything, or a task's, in the order of the recording."""
    if task is None:
        return [*cases("arithmetic"), *cases("summarize")]
    return _expression_cases() if task == "arithmetic" else _article_cases()


def _expression_cases() -> list[Case]:
    found = []
    for number, text in enumerate(expressions()):
        for way in ("token by token", "rows together"):
            found += [
                Case(f"expression {number}, {lane}, {way}", "arithmetic", None, text, lane, way, number)
                for lane in LANES
            ]
    return found


def _article_cases() -> list[Case]:
    found = []
    for number, (length, text) in enumerate(articles()):
        found += [
            Case(f"article {number // 2}, {length}, {lane}", "summarize", length, text, lane, "token by token", number)
            for lane in LANES
        ]
    return found


def digest(ids: Sequence[int]) -> str:
    """What a prompt's ids are recognised by."""
    return hashlib.blake2b(b"".join(token.to_bytes(4, "little") for token in ids), digest_size=8).hexdigest()


class Ways:
    """The project's engines, as the safety line uses them, on the CPU."""

    def __init__(self) -> None:
        self._store = ModelStore(device="cpu", impl="gather")

    def prompt(self, case: Case) -> Rendered:
        """The prompt of a case, as its lane gets it."""
        task = get_task(case.task, length=case.length)
        return task.render(task.parse(case.text), self._store.tokenizer, annotated=LANES[case.lane][1] == "span")

    def token_by_token(self, case: Case) -> list[int]:
        """Ids of one case from the engine of one sequence."""
        attention, adapter = LANES[case.lane]
        task, prompt = get_task(case.task, length=case.length), self.prompt(case)
        rules = task.rules(prompt, self._store.tokenizer, adapter == "span")
        most = task.max_tokens if case.task == "arithmetic" else MAX_SUMMARY_TOKENS
        request = PromptRequest(prompt, adapter == "span", SamplingParams(most), rules)
        events = self._store.engine(case.task, adapter).generate(request, attention, "gather")
        return [event.id for event in events if isinstance(event, Token)]

    def rows_together(self, some: Sequence[Case]) -> Iterator[tuple[int, list[int]]]:
        """(place in `some`, ids) of cases of one lane from the batch step, as they end."""
        attention, adapter = LANES[some[0].lane]
        engine = self._store.engine(some[0].task, adapter)
        capacity = min(MAX_LISTED, engine.model.max_context)
        rows = BatchEngine(
            DecodeWeights(engine.model), engine.markers, BatchShape(BATCH_ROWS, capacity, attention == "dense")
        )
        written: dict[int, list[int]] = {}
        for number, event in rows.generate(PromptRequest(self.prompt(case), adapter == "span") for case in some):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Token):
                written.setdefault(number, []).append(event.id)
        yield from sorted(written.items())


def quiet_threads(count: int) -> None:
    """So many threads for PyTorch."""
    torch.set_num_threads(count)
