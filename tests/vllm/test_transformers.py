"""vLLM's log probabilities beside those of transformers, with masks written out: no engine of this project between."""

from collections.abc import Sequence

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from transformers import AutoModelForCausalLM

from selfspan_core.serve.vllm_plugin.client import Asked, asked
from selfspan_core.spans.tracker import Tracker
from tests.support.vllm_tools import Beside

MOST, TOLERANCE = 250, 2e-3
TEXT, RESULT = "79*36+63-(45-12)*8+7", "2650"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The same folder in both."""
    folder = tmp_path_factory.mktemp("model") / "arithmetic"
    beside = Beside("arithmetic", folder, num_pages=40, max_model_len=512, max_num_seqs=4, max_num_batched_tokens=64)
    yield beside, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    beside.close()


def mask_of(beside: Beside, one: Asked, ids: Sequence[int]) -> torch.Tensor:
    """Bool `[tokens, tokens]`: which keys each query sees, the prompt's queries all before them."""
    num_prompt = len(one.prompt_ids)
    sees = torch.ones(num_prompt + len(ids), num_prompt + len(ids), dtype=torch.bool).tril()
    if one.attention == "sparse":
        tracker = Tracker(beside.tokenizer.markers, one.rendered.prompt)
        for token in ids:
            state = tracker.push(token)
            sees[state.position] = False
            for start, end in state.visible:
                sees[state.position, start:end] = True
    return sees


@pytest.mark.parametrize("attention", ["dense", "sparse"])
@torch.inference_mode()
def test_log_probabilities_are_those_of_transformers(served, attention):
    """An error that both of this project's engines share: a mask that is wrong in the tables of both, rotary positions
    that are counted without what is not seen, a merged adapter that is none.
    """
    beside, model = served
    one = asked("arithmetic", TEXT, beside.tokenizer, attention)
    output = beside.answers([one], max_tokens=MOST, logprobs=0)[0].outputs[0]
    ids, num_prompt = list(output.token_ids), len(one.prompt_ids)
    sees = mask_of(beside, one, ids)
    assert bool((sees.sum(1) < torch.arange(len(sees)) + 1).any()) == (attention == "sparse")
    hidden = torch.zeros(sees.shape).masked_fill_(~sees, torch.finfo(torch.float32).min)
    logits = model(torch.tensor([[*one.prompt_ids, *ids]]), attention_mask=hidden[None, None]).logits[0]
    expected = logits[num_prompt - 1 : -1].float().log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
    theirs = torch.tensor([told[token].logprob for token, told in zip(ids, output.logprobs, strict=True)])
    assert (expected - theirs).abs().max() < TOLERANCE
    assert RESULT in beside.tokenizer.decode(ids)
