"""Tiny random models that learned the beginning of an answer, nearly by heart: most drafts for them are right.

A random model writes no headers, so that nobody drafts for it; the shipped model takes too long for many answers.
"""

import torch
import torch.nn.functional as F

from selfspan_core.attention.reference import visibility_mask
from selfspan_core.models.model import SpanModel
from selfspan_core.spans.render import Rendered
from tests.support.engine_tools import tiny_hf

LEARNING_RATE = 5e-3
NUM_UPDATES = 90
"""With more of them, no answer departs from its example."""
MOST_LEARNED = 120
"""Ids of an answer that are learned: what follows is drafted, too, and mostly wrongly."""


def taught_model(seed: int, vocab_size: int, example: Rendered, sparse: bool) -> SpanModel:
    """A tiny model in float32 on the CPU.

    Args:
        seed: of its weights.
        vocab_size: of the tokenizer.
        example: with its steps.
        sparse: whether each token sees what it sees in self-selected decoding.
    """
    hf = tiny_hf(seed, vocab_size=vocab_size, initializer_range=0.05)
    start = example.prompt.num_tokens
    learned = example.ids[: start + MOST_LEARNED]
    mask = None
    if sparse:
        seen = visibility_mask(example.visibility[: len(learned)], len(learned))[None, None]
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    ids, optimizer = torch.tensor([learned]), torch.optim.Adam(hf.parameters(), LEARNING_RATE)
    for _ in range(NUM_UPDATES):
        hidden = hf.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        loss = F.cross_entropy(hf.lm_head(hidden[0, start - 1 : -1]), ids[0, start:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return SpanModel(hf.eval())
