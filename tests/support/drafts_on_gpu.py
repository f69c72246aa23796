"""The drafting kernels on a GPU, behind the same methods as `drafts_on_cpu.Rows`."""

import torch

from cuda_kernels.drafts import MAX_QUERIES, DraftBuffers, FixedWords, SpanDrafter, order_at_start
from cuda_kernels.rules import RuleBuffers, RuleKeeper
from cuda_kernels.tracker import Grammar, SpanTracker
from selfspan_core.spans.protocol import PromptLayout
from tests.support.drafts_on_cpu import NUM_SLOTS


class GpuRows:
    """A batch's state; all rows are without a sequence."""

    def __init__(self, grammar: Grammar, batch: int, text_length: int, has_rules: bool = False) -> None:
        self.grammar = grammar
        self._tracker = SpanTracker(grammar, batch)
        self.rules = RuleBuffers(grammar, batch, text_length, MAX_QUERIES, "cuda") if has_rules else None
        self._drafter = SpanDrafter(self._tracker, text_length, self.rules)
        self.buffers: DraftBuffers = self._drafter.buffers
        self.tracks = self._tracker.tracks
        self.limits = torch.full((batch,), text_length - 2, dtype=torch.int32, device="cuda")
        self.scripts = torch.full((batch, text_length), -1, dtype=torch.int32, device="cuda")
        self.ring = torch.full((NUM_SLOTS, batch, 17), -7, device="cuda")
        self.step = torch.zeros(1, dtype=torch.int32, device="cuda")

    def begin(
        self, row: int, ids: list[int], layout: PromptLayout, annotated: bool, words: FixedWords, first: int
    ) -> None:
        """A prompt is in the cache, and its first id is drawn."""
        start = self.grammar.start(layout.num_tokens, layout.scaffold_end, layout.segments, annotated)
        self._tracker.set(row, *start)
        self.buffers.orders[row] = order_at_start(self.grammar, layout.segments, words).cuda()
        self.buffers.begin(row, ids[: layout.num_tokens])
        drawn = torch.zeros(len(self.tracks), dtype=torch.int64, device="cuda")
        drawn[row] = first
        self.buffers.take_first(row, drawn)

    def draft(self, num_queries: int, is_dense: bool = False) -> None:
        """See `cuda_kernels.drafts`; what has to be written is poisoned before."""
        buffers = self.buffers
        written = (buffers.ids(num_queries), buffers.positions(num_queries), buffers.first_positions)
        for tensor in (*written, buffers.num_drafts, buffers.counts, buffers.intervals, buffers.masks):
            tensor.fill_(-12345)
        self._drafter.draft(num_queries, self.limits, is_dense)

    def forbidden(self, num_queries: int) -> torch.Tensor:
        """What rules forbid behind every query of the last round, bool `[batch, num_queries, vocab_size]`."""
        batch, vocab_size = len(self.tracks), self.grammar.vocab_size
        logits = torch.zeros(batch * num_queries, vocab_size, dtype=torch.bfloat16, device="cuda")
        keeper = RuleKeeper(self.rules, self._tracker.kinds, torch.bfloat16)
        keeper.narrow(num_queries, self.buffers.positions(num_queries), logits)
        return logits.isneginf().view(batch, num_queries, vocab_size).cpu()

    def accept(self, num_queries: int, drawn: torch.Tensor) -> list[list[int]]:
        """What the ring gets of this round: ids, -1 behind them, number of drafts."""
        self.buffers.drawn(num_queries).copy_(drawn.reshape(-1))
        slot = int(self.step) % NUM_SLOTS
        self._drafter.accept(num_queries, self.scripts, self.limits, self.ring, self.step)
        return self.ring[slot].tolist()
