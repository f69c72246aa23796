"""Decoding by drafts is greedy decoding."""

import pytest
import torch

from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Token
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.model import SpanModel
from selfspan_core.spans.render import Rendered
from selfspan_core.tasks.registry import get_task
from tests.support.tiny_models import save_tiny
from training.data.generated import evaluation_set
from training.evaluation.batch_decode import decode_greedily
from training.evaluation.drafts import decode_by_drafts, would_write

LANES = [(True, True), (True, False), (False, False)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    base, _ = save_tiny(tmp_path_factory.mktemp("tiny"), max_context=1024)
    return SpanModel.load(base, None, "cpu", torch.float32)


def rendered(model, annotated: bool) -> list[Rendered]:
    task = get_task("arithmetic")
    problems = [evaluation_set(get_task("arithmetic"), operands, 1, seed=0)[0] for operands in (2, 9, 4)]
    return [task.render(p, model.tokenizer, annotated, offset=5, with_steps=True) for p in problems]


@pytest.mark.parametrize(("annotated", "sparse"), LANES)
def test_each_token_is_judged_under_its_own_visibility(model, annotated, sparse, monkeypatch):
    """Would catch a mask, a position or an off-by-one that makes drafts right or wrong where decoding differs."""
    examples = rendered(model, annotated)
    seen = {}
    forward = model.forward_argmax
    monkeypatch.setattr(model, "forward_argmax", lambda *rest: seen.setdefault("argmax", forward(*rest)))
    assert would_write(model, examples, sparse) == [False] * len(examples)  # a random model writes nonsense
    engine = Engine(model, model.tokenizer.markers)
    for row, example in zip(seen["argmax"].tolist(), examples, strict=True):
        start = example.prompt.num_tokens
        way = ("sparse", "reference") if sparse else ("dense",)
        forced = example.ids[start:]
        run = engine.generate(PromptRequest(example, annotated, forced_tokens=forced, with_logits=True), *way)
        expected = [int(event.logits.argmax()) for event in run if isinstance(event, Token)]
        assert row[start - 1 : len(example.ids) - 1] == expected


@pytest.mark.parametrize(("annotated", "sparse"), LANES)
def test_drafts_are_accepted_exactly_when_decoding_writes_them(model, annotated, sparse, monkeypatch):
    """Would catch a draft that is accepted with one token wrong, and figures that differ from decoding's."""
    examples, markers = rendered(model, annotated), model.tokenizer.markers
    predicted = {}
    forward = model.forward_argmax

    def obliging(ids, positions, reader):
        """Says that each draft's own next token is the likeliest, but for one token of the second row."""
        forward(ids, positions, reader)
        argmax = torch.roll(ids, -1, dims=1)
        second = examples[1].ids
        row = next(i for i in range(len(ids)) if ids[i, : len(second)].tolist() == second)
        argmax[row, len(second) - 2] = markers.ref  # <eos> is not what it would write
        predicted["called"] = True
        return argmax

    monkeypatch.setattr(model, "forward_argmax", obliging)
    results, num_left = decode_by_drafts(model, markers, examples, sparse, annotated, 400, draft_batch=3)
    assert predicted and num_left == 1
    for index in (0, 2):
        assert results[index].ids == examples[index].ids[examples[index].prompt.num_tokens :]
        assert results[index].num_malformed == 0
        assert results[index].dense_tokens >= results[index].attended_tokens > 0
    expected = decode_greedily(model, markers, [examples[1]], sparse, annotated, 400)[0]
    assert results[1] == expected


def test_long_drafts_are_decoded(model):
    """Would catch a draft accepted beyond the limit at which decoding stops."""
    examples, markers = rendered(model, True), model.tokenizer.markers
    results, num_left = decode_by_drafts(model, markers, examples, True, True, 10, draft_batch=2)
    assert num_left == len(examples) and all(len(row.ids) <= 10 for row in results)
