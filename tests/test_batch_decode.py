"""Batched decoding, which evaluation uses, computes what the engine computes."""

import pytest
import torch

from selfspan_core.engine.engine import Engine
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.model import SpanModel
from selfspan_core.tasks.registry import get_task
from tests.support.tiny_models import save_tiny
from training.data.generated import evaluation_set
from training.evaluation.batch_decode import decode_greedily, decode_requests

OPERANDS = (2, 2, 2, 14, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    base, _ = save_tiny(tmp_path_factory.mktemp("tiny"), max_context=1024)
    return SpanModel.load(base, None, "cpu", torch.float32)


@pytest.mark.parametrize(("annotated", "sparse"), [(True, True), (True, False), (False, False)])
def test_every_row_is_what_the_engine_computes(model, annotated, sparse):
    """Would catch rows mixed up when one is done before another, and figures that differ from the engine's."""
    task, tokenizer = get_task("arithmetic"), model.tokenizer
    problems = [evaluation_set(task, operands, 3, seed=0)[i % 3] for i, operands in enumerate(OPERANDS)]
    rendered = [task.render(p, tokenizer, annotated, offset=7, with_steps=True) for p in problems]
    requests = [PromptRequest(r, annotated, forced_tokens=r.ids[r.prompt.num_tokens :]) for r in rendered]
    decoded = decode_requests(model, tokenizer.markers, requests, sparse)
    engine = Engine(model, tokenizer.markers)
    for row, request in zip(decoded, requests, strict=True):
        attention = ("sparse", "reference") if sparse else ("dense",)
        *_, finished = engine.generate(request, *attention)
        assert row.ids == request.forced_tokens
        figures = (row.attended_tokens, row.dense_tokens, row.num_malformed)
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
