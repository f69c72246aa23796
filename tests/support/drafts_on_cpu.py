"""The drafting kernels compiled for the CPU (see kernel_on_cpu)."""

import ctypes
import functools
from dataclasses import dataclass

import torch

from cuda_kernels.drafts import (
    MAX_QUERIES,
    TABLE_SPANS,
    DraftBuffers,
    FixedWords,
    ids_of_kinds,
    macros,
    order_at_start,
    order_words,
)
from cuda_kernels.rules import RuleBuffers, limits_words, row_words
from cuda_kernels.tracker import IDLE, Grammar
from selfspan_core.spans.protocol import PromptLayout
from tests.support.kernel_on_cpu import compiled, pointer

NUM_SLOTS = 4
NARROW_THREADS = 64


@functools.cache
def narrow_library(grammar: Grammar) -> ctypes.CDLL:
    """The kernel that narrows logits in bfloat16; compiled once per test run."""
    return compiled("narrow.cpp", (*grammar.macros(), f"-DMAX_QUERIES={MAX_QUERIES}", "-DIS_BF16=1"))


@functools.cache
def library(grammar: Grammar, has_rules: bool = False) -> ctypes.CDLL:
    """The kernels of one grammar; compiled once per test run."""
    loaded = compiled("draft.cpp", macros(grammar, has_rules))
    assert loaded.num_order_words() == order_words(grammar)
    assert loaded.num_table_edges() <= TABLE_SPANS
    if has_rules:
        assert loaded.num_rule_words() == row_words(grammar)
        assert loaded.num_limits_words() == limits_words(grammar)
    return loaded


def addresses(*tensors: torch.Tensor):
    """Pointers as one argument."""
    return (ctypes.c_void_p * 32)(*[tensor.data_ptr() for tensor in tensors])


@dataclass
class Rows:
    """A batch's state beside the buffers."""

    grammar: Grammar
    buffers: DraftBuffers
    tracks: torch.Tensor
    segments: torch.Tensor
    limits: torch.Tensor
    scripts: torch.Tensor
    ring: torch.Tensor
    step: torch.Tensor
    rules: RuleBuffers | None = None

    @classmethod
    def idle(cls, grammar: Grammar, batch: int, text_length: int, has_rules: bool = False) -> "Rows":
        """All rows are without a sequence."""
        tracks = torch.zeros(batch, grammar.track_words, dtype=torch.int32)
        tracks[:, 1] = IDLE
        return cls(
            grammar,
            DraftBuffers(grammar, batch, text_length, "cpu"),
            tracks,
            torch.zeros(batch, len(grammar.anchors), 2, dtype=torch.int32),
            torch.full((batch,), text_length - 2, dtype=torch.int32),
            torch.full((batch, text_length), -1, dtype=torch.int32),
            torch.full((NUM_SLOTS, batch, 17), -7),
            torch.zeros(1, dtype=torch.int32),
            RuleBuffers(grammar, batch, text_length, MAX_QUERIES, "cpu") if has_rules else None,
        )

    def begin(
        self, row: int, ids: list[int], layout: PromptLayout, annotated: bool, words: FixedWords, first: int
    ) -> None:
        """A prompt is in the cache, and its first id is drawn."""
        start = self.grammar.start(layout.num_tokens, layout.scaffold_end, layout.segments, annotated)
        self.tracks[row], self.segments[row] = start
        self.buffers.orders[row] = order_at_start(self.grammar, layout.segments, words)
        self.buffers.texts[row, : layout.num_tokens + 1] = torch.tensor([*ids[: layout.num_tokens], first])
        self.buffers.pending[row, 0], self.buffers.num_pending[row] = first, 1

    def draft(self, num_queries: int, is_dense: bool = False) -> None:
        """See `cuda_kernels.drafts`; what has to be written is poisoned before."""
        buffers, kinds, markers = self.buffers, self.grammar.kinds(), ids_of_kinds(self.grammar)
        ids, positions = buffers.ids(num_queries), buffers.positions(num_queries)
        written = (buffers.first_positions, buffers.num_drafts, buffers.counts)
        for tensor in (ids, positions, *written, buffers.intervals, buffers.masks):
            tensor.fill_(-12345)
        state = (self.tracks, self.segments, buffers.orders, buffers.texts, self.limits, buffers.injected)
        rules, room = ((), (0, 0)) if self.rules is None else (self.rules.tensors, self.rules.room)
        library(self.grammar, self.rules is not None).run_draft(
            addresses(
                *(buffers.pending, buffers.num_pending, kinds, markers, *state, ids, positions),
                *(buffers.first_positions, buffers.num_drafts, buffers.intervals, buffers.masks, buffers.counts),
                *rules,
            ),
            len(self.tracks),
            self.grammar.vocab_size,
            buffers.texts.shape[1],
            num_queries,
            int(is_dense),
            TABLE_SPANS,
            *room,
        )

    def forbidden(self, num_queries: int) -> torch.Tensor:
        """What rules forbid behind every query of the last round, bool `[batch, num_queries, vocab_size]`."""
        assert self.rules is not None
        batch, vocab_size, kinds = len(self.tracks), self.grammar.vocab_size, self.grammar.kinds()
        logits = torch.zeros(batch * num_queries, vocab_size, dtype=torch.bfloat16)
        tables = (self.rules.limits, kinds, self.rules.classes, self.buffers.positions(num_queries))
        sizes = (len(logits), num_queries, vocab_size)
        narrow_library(self.grammar).run_narrow(*map(pointer, tables), *sizes, pointer(logits), NARROW_THREADS)
        return logits.isneginf().view(batch, num_queries, vocab_size)

    def accept(self, num_queries: int, drawn: torch.Tensor) -> list[list[int]]:
        """What the ring gets of this round: ids, -1 behind them, number of drafts."""
        buffers, kinds = self.buffers, self.grammar.kinds()
        buffers.drawn(num_queries).copy_(drawn.reshape(-1))
        slot = int(self.step) % NUM_SLOTS
        library(self.grammar, self.rules is not None).run_accept(
            addresses(
                *(buffers.drawn(num_queries), buffers.ids(num_queries), buffers.first_positions, buffers.num_drafts),
                *(kinds, self.tracks, self.scripts, self.limits, buffers.texts, buffers.pending, buffers.num_pending),
                *(self.ring, self.step),
            ),
            num_queries,
            self.scripts.shape[1],
            len(self.tracks),
            buffers.texts.shape[1],
            NUM_SLOTS,
            self.ring.shape[2],
        )
        return self.ring[slot].tolist()
