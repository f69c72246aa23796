"""Drafts on the device: propose, and keep what was right, for every row of a batch, inside a captured graph.

What is proposed has its specification in plain Python, which this module does not import: `FixedWords` carries what a
task knows of its steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cuda_kernels.checks import check_tensor
from cuda_kernels.compile import load
from cuda_kernels.launcher import Launcher, int32s, pointers
from cuda_kernels.rules import RuleBuffers
from cuda_kernels.tracker import Grammar, SpanTracker

MAX_QUERIES = 16
"""Of a row: its last id and up to 15 drafts."""
MAX_COPIED = 1024
"""Tokens of a body that are looked at."""
MAX_FIXED = 8
"""Most tokens of a task's fixed words (reading_order.cuh)."""
MAX_BODIES = 2
"""That the queries of a row may stand in (MAX_CONTEXTS in draft.cu)."""
OWN_DRAFTS = -2
"""In `injected`: the row proposes its own drafts (draft.cu)."""
TABLE_SPANS = 48
"""Room for the intervals of a row's queries; `NUM_EDGES` in draft.cu are needed, 40 with eight reads."""
DRAFT_THREADS, ACCEPT_THREADS = 128, 32
NUM_OFFSETS, NUM_SITUATIONS = 31, 9
"""As in reading_order.cuh."""


@dataclass(frozen=True)
class FixedWords:
    """What a task knows of its steps.

    Attributes:
        num_reads: segments that a header is likely to name, 1 to `Grammar.max_reads`.
        between: ids that may stand between the copies of two segments, 8 at most.
        behind: ids that follow the copies, 8 at most.
    """

    num_reads: int
    between: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()


def macros(grammar: Grammar, has_rules: bool = False) -> tuple[str, ...]:
    """The source's macros, as compiler options."""
    others = {"MAX_QUERIES": MAX_QUERIES, "MAX_COPIED": MAX_COPIED, "HAS_RULES": int(has_rules)}
    return (*grammar.macros(), *(f"-D{name}={value}" for name, value in others.items()))


def order_words(grammar: Grammar) -> int:
    """Length of a row's reading order in words of 32 bits (struct ReadingOrder in reading_order.cuh)."""
    num = len(grammar.anchors)
    live = 2 + grammar.max_reads + 1 + -(-num // 2)
    return live + 3 + 2 * MAX_FIXED + 2 * num + -(-num // 32) + -(-NUM_OFFSETS * NUM_SITUATIONS // 2)


def order_at_start(grammar: Grammar, segments: Mapping[int, tuple[int, int]], words: FixedWords) -> torch.Tensor:
    """A row's reading order behind its prompt, int32 `[order_words]`.

    Args:
        grammar: the protocol's numbers.
        segments: of the prompt, anchor id -> interval; the last one was named last.
        words: of the task.

    Raises:
        ValueError: the task's words are too many.
    """
    if not 1 <= words.num_reads <= grammar.max_reads or max(len(words.between), len(words.behind)) > MAX_FIXED:
        raise ValueError(f"fixed words: 1 to {grammar.max_reads} reads and at most {MAX_FIXED} ids, not {words}")
    index = {token: number for number, token in enumerate(grammar.anchors)}
    num = len(grammar.anchors)
    live = np.zeros(2 * -(-num // 2), dtype=np.int16)
    live[: len(segments)] = [index[name] for name in sorted(segments, key=lambda name: segments[name])]
    num_by_reads = np.zeros(grammar.max_reads + 1, dtype=np.int32)
    num_by_reads[words.num_reads] = 1
    extents = np.zeros((num, 2), dtype=np.int32)
    is_of_prompt = np.zeros(32 * -(-num // 32), dtype=np.uint8)
    for name, interval in segments.items():
        extents[index[name]] = interval
        is_of_prompt[index[name]] = 1
    last_name = index[list(segments)[-1]] if segments else -1
    parts = (
        np.array([len(segments), -1], dtype=np.int32),
        num_by_reads,
        live.view(np.int32),
        np.array([last_name, *_padded(words.between), *_padded(words.behind)], dtype=np.int32),
        extents.reshape(-1),
        np.packbits(is_of_prompt, bitorder="little").view(np.int32),
        np.zeros(-(-NUM_OFFSETS * NUM_SITUATIONS // 2), dtype=np.int32),
    )
    return torch.from_numpy(np.concatenate(parts))


def _padded(ids: Sequence[int]) -> list[int]:
    return [len(ids), *ids, *[0] * (MAX_FIXED - len(ids))]


class DraftBuffers:
    """What a batch's rounds read and write, on one device.

    Args:
        grammar: the protocol's numbers.
        batch: rows.
        text_length: ids of a row's text, prompt and answer.
        device: of all tensors.

    Attributes:
        orders: int32 `[batch, order_words]`. texts: int32 `[batch, text_length]`.
        pending: int32 `[batch, 16]` with num_pending: int32 `[batch]`: ids that the trackers have not seen.
        injected: int32 `[batch, 15]`: drafts up to the first negative one, or OWN_DRAFTS in the first place.
        first_positions, num_drafts, counts: int32 `[batch]`. intervals: int32 `[batch, 48, 2]`. masks: int32
            `[batch, 48]`.
    """

    def __init__(self, grammar: Grammar, batch: int, text_length: int, device: torch.device | str) -> None:
        zeros = lambda *shape: torch.zeros(shape, dtype=torch.int32, device=device)  # noqa: E731
        self.batch = batch
        self.orders, self.texts = zeros(batch, order_words(grammar)), zeros(batch, text_length)
        self.pending, self.num_pending = zeros(batch, MAX_QUERIES), zeros(batch)
        self.injected = torch.full((batch, MAX_QUERIES - 1), OWN_DRAFTS, dtype=torch.int32, device=device)
        self.first_positions, self.num_drafts, self.counts = zeros(batch), zeros(batch), zeros(batch)
        self.intervals, self.masks = zeros(batch, TABLE_SPANS, 2), zeros(batch, TABLE_SPANS)
        self._ids, self._drawn = (torch.zeros(batch * MAX_QUERIES, dtype=torch.int64, device=device) for _ in range(2))
        self._positions = zeros(batch * MAX_QUERIES)
        self._num_prompt = [0] * batch

    def begin(self, row: int, ids: Sequence[int]) -> None:
        """A prompt is in the cache; waits for nothing."""
        self._num_prompt[row] = len(ids)
        self.texts[row, : len(ids)].copy_(torch.tensor(list(ids), dtype=torch.int32), non_blocking=True)

    def take_first(self, row: int, ids: torch.Tensor) -> None:
        """A row's first id is drawn: it stands in the row's place of `ids`, `[batch]`."""
        self.texts[row, self._num_prompt[row]].copy_(ids[row])
        self.pending[row, 0].copy_(ids[row])
        self.num_pending[row].fill_(1)

    def ids(self, num_queries: int) -> torch.Tensor:
        """int64 `[batch * num_queries]`: every row's last id and its drafts."""
        return self._ids[: self.batch * num_queries]

    def drawn(self, num_queries: int) -> torch.Tensor:
        """int64 `[batch * num_queries]`: what was drawn behind every query."""
        return self._drawn[: self.batch * num_queries]

    def positions(self, num_queries: int) -> torch.Tensor:
        """int32 `[batch * num_queries]`: where every query stands, or -1."""
        return self._positions[: self.batch * num_queries]


class SpanDrafter:
    """Launcher of the drafting kernels for one batch.

    Args:
        tracker: of the batch; its tracks and segments are moved on by `draft`, not by its own `push`.
        text_length: ids of a row's text, prompt and answer.
        rules: of the batch, if its rows may have any: they cut drafts, and say what may be drawn behind every query.
    """

    def __init__(self, tracker: SpanTracker, text_length: int, rules: RuleBuffers | None = None) -> None:
        self._tracker, grammar, device = tracker, tracker.grammar, tracker.device
        self.buffers = DraftBuffers(grammar, tracker.batch, text_length, device)
        self._rules = rules
        self._draft, self._accept = (
            load("draft.cu", name, macros(grammar, rules is not None), device.index)
            for name in ("selfspan_draft", "selfspan_accept")
        )
        self._launch = Launcher(device)
        self._ids_of_kinds = ids_of_kinds(grammar).to(device)

    def draft(self, num_queries: int, limits: torch.Tensor, is_dense: bool) -> None:
        """Take in what the last round kept, propose, and write what every query sees.

        Args:
            num_queries: of every row, 1 to 16.
            limits: int32 `[batch]`, positions that a row may take.
            is_dense: everything is visible, whatever the headers name.
        """
        buffers, tracker = self.buffers, self._tracker
        if not 1 <= num_queries <= MAX_QUERIES:
            raise ValueError(f"num_queries is 1 to {MAX_QUERIES}, not {num_queries}")
        check_tensor("limits", limits, (tracker.batch,), torch.int32, tracker.device, contiguous=True)
        arguments = (
            *pointers(buffers.pending, buffers.num_pending, tracker.kinds, self._ids_of_kinds),
            np.int32(tracker.grammar.vocab_size),
            *pointers(tracker.tracks, tracker.segments, buffers.orders, buffers.texts),
            np.int32(buffers.texts.shape[1]),
            *pointers(limits, buffers.injected),
            *int32s(num_queries, is_dense),
            *pointers(buffers.ids(num_queries), buffers.positions(num_queries), buffers.first_positions),
            *pointers(buffers.num_drafts, buffers.intervals, buffers.masks),
            np.int32(TABLE_SPANS),
            *pointers(buffers.counts),
            *(() if self._rules is None else self._rules.arguments()),
        )
        self._launch(self._draft, tracker.batch, DRAFT_THREADS, arguments)

    def accept(
        self, num_queries: int, scripts: torch.Tensor, limits: torch.Tensor, ring: torch.Tensor, step: torch.Tensor
    ) -> None:
        """Keep the drafts that are what was drawn, and the first id that is not; rows at their end become idle.

        Args:
            num_queries: as for `draft`.
            scripts: int32 `[batch, script_length]`: the id that a row has to take at a position, or -1.
            limits: int32 `[batch]`.
            ring: int64 `[num_slots, batch, 17 or less]` on the device, or pinned on the host; slot `step % num_slots`
                is written: the ids, -1 behind them, and in the last place the number of drafts.
            step: int32 `[1]` on the device; is incremented.
        """
        buffers, tracker = self.buffers, self._tracker
        check_tensor(
            "scripts", scripts, (tracker.batch, scripts.shape[1]), torch.int32, tracker.device, contiguous=True
        )
        check_tensor("limits", limits, (tracker.batch,), torch.int32, tracker.device, contiguous=True)
        check_tensor("step", step, (1,), torch.int32, tracker.device, contiguous=True)
        where = ring.device if ring.device.type == "cpu" and ring.is_pinned() else tracker.device
        width = ring.shape[-1]
        check_tensor("ring", ring, (ring.shape[0], tracker.batch, width), torch.int64, where, contiguous=True)
        if width < num_queries + 1:
            raise ValueError(f"ring has room for {width - 1} ids a row, and {num_queries} are needed")
        arguments = (
            *pointers(buffers.drawn(num_queries), buffers.ids(num_queries), buffers.first_positions),
            *pointers(buffers.num_drafts),
            np.int32(num_queries),
            *pointers(tracker.kinds, tracker.tracks, scripts),
            np.int32(scripts.shape[1]),
            *pointers(limits),
            np.int32(tracker.batch),
            *pointers(buffers.texts),
            np.int32(buffers.texts.shape[1]),
            *pointers(buffers.pending, buffers.num_pending, ring),
            *int32s(ring.shape[0], width),
            *pointers(step),
        )
        self._launch(self._accept, 1, ACCEPT_THREADS, arguments)


def ids_of_kinds(grammar: Grammar) -> torch.Tensor:
    """The id of every kind of marker, int32 `[num_anchors + 5]`; see `Grammar.kinds`."""
    markers = (grammar.ref, grammar.go, grammar.res, grammar.end, grammar.eos)
    return torch.tensor([*grammar.anchors, *markers], dtype=torch.int32)
