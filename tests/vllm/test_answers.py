"""Answers out of vLLM, on a CPU: those of the project's own engine, whatever else runs, is preempted or is cached."""

import random

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from selfspan_core.serve.vllm_plugin.client import Asked, asked
from selfspan_core.spans.protocol import PromptLayout
from selfspan_core.spans.render import Rendered
from selfspan_core.spans.tracker import Tracker
from selfspan_core.tasks.arithmetic.task import random_problem
from tests.support.vllm_tools import PAGE_SIZE, Beside

TOLERANCE = 2e-3
MOST = 300


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """Four rows, pages for one of the longest requests, and prompts computed in pieces of 64 tokens."""
    folder = tmp_path_factory.mktemp("model") / "arithmetic"
    made = Beside("arithmetic", folder, num_pages=17, max_model_len=512, max_num_seqs=4, max_num_batched_tokens=64)
    yield made
    made.close()


def expressions(beside: Beside, count: int, attention: str, seed: int = 0) -> list[Asked]:
    rng = random.Random(seed)
    texts = [random_problem(rng, 2 + number % 9).text for number in range(count)]
    return [asked("arithmetic", text, beside.tokenizer, attention) for text in texts]


def continued(one: Asked, ids: list[int], attention: str) -> Asked:
    """A request whose prompt is another's prompt and answer, in which nothing is named."""
    whole = [*one.prompt_ids, *ids]
    return Asked(Rendered(whole, PromptLayout(len(whole), 1, {}), [], []), attention)


def reads_below_everything(beside: Beside, one: Asked, ids: list[int]) -> int:
    """Tokens read by the queries of an answer that read less than everything; its last id never becomes a query."""
    tracker = Tracker(beside.tokenizer.markers, one.rendered.prompt)
    states = [tracker.push(token) for token in ids[:-1]]
    return sum(state.num_visible for state in states if state.num_visible < state.position + 1)


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_greedy_answers_are_those_of_the_own_engine(beside, attention):
    """Attention that sees another set of tokens, in either lane; a kernel of vLLM's that sees rows that are not its."""
    requests = expressions(beside, 8, attention)
    outputs = [output.outputs[0] for output in beside.answers(requests, max_tokens=MOST)]
    differences = [beside.difference(one, out.token_ids, MOST) for one, out in zip(requests, outputs, strict=True)]
    assert not any(differences), differences
    told = [beside.account(one, out.token_ids) for one, out in zip(requests, outputs, strict=True)]
    assert all(one.num_malformed == 0 and one.reason == "eos" for one in told)


def test_the_worker_reads_what_the_answers_declare(beside):
    """A plugin that is there and never attends: answers of a model trained in both ways would hardly differ."""
    pair = expressions(beside, 2, "sparse", seed=2)
    before = beside.rows.num_read, beside.metric("num_preemptions")
    outputs = [output.outputs[0] for output in beside.answers(pair, max_tokens=120)]
    assert beside.metric("num_preemptions") == before[1]
    declared = [reads_below_everything(beside, one, out.token_ids) for one, out in zip(pair, outputs, strict=True)]
    assert beside.rows.num_read - before[0] == sum(declared) > 0
    beside.answers(expressions(beside, 2, "dense", seed=2), max_tokens=20)
    assert beside.rows.num_read - before[0] == sum(declared)


def test_requests_that_come_go_and_are_preempted_keep_what_they_see(beside):
    """A row that takes over another's spans; keys computed once more that see what they did not see before.

    Answers are drawn at a high temperature and go on past their end, so that most break the grammar somewhere.
    """
    lanes = (expressions(beside, 4, attention, seed=7) for attention in ("dense", "sparse"))
    requests = [one for pair in zip(*lanes, strict=True) for one in pair]
    sampling = {"temperature": 1.0, "logprobs": 0, "logit_bias": {beside.tokenizer.markers.eos: -100.0}}
    before = beside.metric("num_preemptions"), beside.rows.num_read
    outputs = [output.outputs[0] for output in beside.answers(requests, max_tokens=130, **sampling)]
    assert beside.metric("num_preemptions") > before[0] and beside.rows.num_read > before[1]
    told = [beside.account(one, output.token_ids) for one, output in zip(requests, outputs, strict=True)]
    assert sum(one.num_malformed for one in told) > 0 and all(one.num_tokens == 130 for one in told)
    for number, (one, output) in enumerate(zip(requests, outputs, strict=True)):
        errors = beside.logprob_errors(one, output)
        assert errors.max() < TOLERANCE, (number, one.attention, int(errors.argmax()), float(errors.max()))
    beside.answers(expressions(beside, 1, "dense"), max_tokens=1)  # vLLM tells that a request is gone with the next one
    assert not beside.rows.followed


def test_cached_pages_are_found_only_where_they_are_the_same(beside):
    """Keys of an answer that saw its spans alone, handed to a request that would have seen everything."""
    (one,) = expressions(beside, 1, "sparse", 11)
    long_one = asked("arithmetic", "+".join(map(str, range(10, 30))), beside.tokenizer, "sparse")
    first = beside.answers([long_one], max_tokens=MOST)[0]
    again = beside.answers([long_one], max_tokens=MOST)[0]
    assert again.num_cached_tokens >= PAGE_SIZE
    assert again.outputs[0].token_ids == first.outputs[0].token_ids
    assert not beside.difference(long_one, again.outputs[0].token_ids, MOST)
    for attention in ("dense", "sparse"):
        longer = continued(long_one, list(first.outputs[0].token_ids)[:150], attention)
        output = beside.answers([longer], max_tokens=8, temperature=1.0, logprobs=0)[0]
        assert output.num_cached_tokens == 0, attention
        assert beside.logprob_errors(longer, output.outputs[0]).max() < TOLERANCE
    assert beside.answers([one], max_tokens=5)[0].outputs[0].token_ids


def test_a_bad_request_is_refused_and_others_go_on(beside):
    """An error in the worker, which ends the engine for everybody."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    (one,) = expressions(beside, 1, "sparse", 3)
    for bad in ({"attention": "sparse"}, "[", 3):
        with pytest.raises((ValueError, VLLMValidationError), match="selfspan"):
            beside.llm.generate([one.prompt], SamplingParams(extra_args={"selfspan": bad}), use_tqdm=False)
    beyond = {"selfspan": {"attention": "sparse", "scaffold_end": 400, "segments": [[9, 0, 500], [10, 400, 410]]}}
    params = SamplingParams(temperature=0, max_tokens=20, extra_args=beyond)
    assert beside.llm.generate([one.prompt], params, use_tqdm=False)[0].outputs[0].token_ids
    output = beside.answers([one], max_tokens=MOST)[0].outputs[0]
    assert not beside.difference(one, output.token_ids, MOST)
