"""Articles in vLLM, on a CPU: prompts of many pages, rows of both kinds at once."""

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from selfspan_core.serve.vllm_plugin.client import asked
from selfspan_core.tasks.summarize.examples import EXAMPLES
from tests.support.vllm_tools import Beside

MOST = 200


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """Room for all articles at once."""
    folder = tmp_path_factory.mktemp("model") / "summarize"
    made = Beside("summarize", folder, num_pages=250, max_model_len=2048, max_num_seqs=4, max_num_batched_tokens=256)
    yield made
    made.close()


def test_greedy_summaries_are_those_of_the_own_engine(beside):
    """A page beyond the first of a row's table, read through another row's; rules are the own engine's, and are off."""
    texts = EXAMPLES[:2]
    requests = [asked("summarize", text, beside.tokenizer, how) for text in texts for how in ("dense", "sparse")]
    outputs = [output.outputs[0] for output in beside.answers(requests, max_tokens=MOST)]
    differences = [beside.difference(one, out.token_ids, MOST) for one, out in zip(requests, outputs, strict=True)]
    assert not any(differences), differences
    shares = [beside.account(one, out.token_ids) for one, out in zip(requests, outputs, strict=True)]
    assert all(one.attended_tokens < 0.9 * one.dense_tokens for one in shares[1::2])
