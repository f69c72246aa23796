"""Batched decoding, which evaluation uses, computes what the engine computes."""

import pytest
import torch

from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Token
from selfspan_core.models.model import SpanModel
from selfspan_core.tasks.registry import get_task
from tests.support.asking import generate
from tests.support.tiny_models import save_tiny
from training.data.generated import evaluation_set
from training.evaluation.batch_decode import decode_greedily

OPERANDS = (2, 2, 2, 14, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    base, _ = save_tiny(tmp_path_factory.mktemp("tiny"), max_context=1024)
    return SpanModel.load(base, None, "cpu", torch.float32)


class Dictated:
    """A model that computes its logits and then says what it is told to, row by row; keeps the logits.

    Rows are told apart by their order: a smaller batch is one without the rows whose script is over.
    """

    def __init__(self, model: SpanModel, scripts: list[list[int]]) -> None:
        self._model = model
        self._scripts = scripts
        self._rows = list(range(len(scripts)))
        self.logits: list[list[torch.Tensor]] = [[] for _ in scripts]
        self.batch_sizes: list[int] = []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def forward_rows(self, ids, *arguments):
        if len(ids) < len(self._rows):
            self._rows = [row for row in self._rows if len(self.logits[row]) < len(self._scripts[row])]
        self.batch_sizes.append(len(ids))
        logits = self._model.forward_rows(ids, *arguments)
        dictated = torch.zeros_like(logits)
        for at, row in enumerate(self._rows):
            written = len(self.logits[row])
            if written < len(self._scripts[row]):
                self.logits[row].append(logits[at])
                dictated[at, self._scripts[row][written]] = 1
        return dictated


@pytest.mark.parametrize(("annotated", "sparse"), [(True, True), (True, False), (False, False)])
def test_every_row_is_what_the_engine_computes(model, annotated, sparse):
    """Would catch a wrong mask or position, padding that is seen, rows mixed up when finished ones are dropped, a cache
    that loses something when it grows, and figures that differ from the engine's."""
    task, tokenizer = get_task("arithmetic"), model.tokenizer
    problems = [evaluation_set(task, operands, 3, seed=0)[i % 3] for i, operands in enumerate(OPERANDS)]
    rendered = [task.render(p, tokenizer, annotated, offset=7, with_steps=True) for p in problems]
    scripts = [r.ids[r.prompt.num_tokens :] for r in rendered]
    dictated = Dictated(model, scripts)
    decoded = decode_greedily(dictated, tokenizer.markers, rendered, sparse, annotated, max_new_tokens=1000)
    assert min(dictated.batch_sizes) < len(OPERANDS), "no row was ever dropped: the test is blind"
    engine = Engine(model, tokenizer.markers)
    for row, (script, example) in enumerate(zip(scripts, rendered, strict=True)):
        attention = {"attention": "sparse", "impl": "reference"} if sparse else {"attention": "dense"}
        run = generate(engine, example, annotated=annotated, forced_tokens=script, with_logits=True, **attention)
        *events, finished = run
        expected = torch.stack([event.logits for event in events if isinstance(event, Token)])
        torch.testing.assert_close(torch.stack(dictated.logits[row]), expected, atol=1e-4, rtol=0)
        assert decoded[row].ids == script
        figures = (decoded[row].attended_tokens, decoded[row].dense_tokens, decoded[row].num_malformed)
        assert figures == (finished.attended_tokens, finished.dense_tokens, 0)
    if sparse:
        assert sum(row.attended_tokens for row in decoded) < sum(row.dense_tokens for row in decoded)


def test_token_limit(model):
    """Would catch a row that goes on past its limit."""
    task, tokenizer = get_task("arithmetic"), model.tokenizer
    prompts = [task.render(p, tokenizer, False) for p in evaluation_set(get_task("arithmetic"), 3, 2, seed=0)]
    for limit in (1, 5):
        for row in decode_greedily(model, tokenizer.markers, prompts, False, False, limit):
            assert len(row.ids) == limit or row.ids[-1] == tokenizer.markers.eos
