"""What queries see whose ids the host has not heard of yet: trackers on the device. Knows nothing of vLLM.

With asynchronous scheduling a step is planned while the one before is running. Ids go from one to the next without the
host, which follows them one step later and knows all that came before.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from selfspan_core.serve.vllm_plugin.followed import Followed, SpanRows
from selfspan_core.serve.vllm_plugin.step_table import MAX_SPANS, SelectedQuery

if TYPE_CHECKING:
    from cuda_kernels.follower import SpanFollower


@dataclass(frozen=True)
class LateQuery:
    """A query whose id the device knows: its place among the step's, its row, and the id's number in the answer."""

    place: int
    row: int
    followed: Followed
    index: int


def late_queries(
    rows: SpanRows, query_starts: Sequence[int], seq_lens: Sequence[int]
) -> tuple[list[LateQuery], list[SelectedQuery]]:
    """The queries of a step that trackers on the device answer for, and the others that read less than everything.

    A row's only query is one of the former, whether the host knows its id or not, so that the device's tracker stays
    beside it. The others are those of answers that are computed once more.

    Args:
        rows: the requests with self-selected attention.
        query_starts: where each row's queries begin among the step's, and where the last row's end.
        seq_lens: tokens of each row, those of this step included.
    """
    late: list[LateQuery] = []
    known: list[SelectedQuery] = []
    for row, followed in sorted(rows.followed.items()):
        if row >= len(seq_lens):
            continue
        first, end = query_starts[row], query_starts[row + 1]
        for place in range(first, end):
            position = seq_lens[row] - end + place
            index = position - followed.prompt.num_tokens
            if index < 0:
                continue
            if end - first == 1 or not followed.knows(index):
                late.append(LateQuery(place, row, followed, index))
            elif (visible := followed.visible(position)) is not None:
                known.append(SelectedQuery(place, row, visible))
    return late, known


class DeviceRows:
    """Trackers of requests, and the table of what a step's queries see.

    Args:
        follower: the trackers; as many slots as there may be requests.
        max_queries: most of one step.
        device: where they run.
    """

    def __init__(self, follower: "SpanFollower", max_queries: int, device: torch.device) -> None:
        self._follower, self._device = follower, device
        self._free = list(range(max_queries))
        self._held: dict[Followed, tuple[int, int]] = {}  # slot, and how many ids of the answer it has taken in
        self._host = torch.zeros(3 * max_queries, dtype=torch.int32, pin_memory=device.type == "cuda")

    def keep(self, requests: Collection[Followed]) -> None:
        """Forget all others."""
        for gone in self._held.keys() - set(requests):
            slot, _ = self._held.pop(gone)
            self._free.append(slot)

    def push(
        self, ids: torch.Tensor, queries: Sequence[LateQuery | None], lengths: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Follow one id of each query; int32 `[N, MAX_SPANS, 2]` and `[N]` on the device: the intervals that they see.

        The host's table is written again in the next call: by then the device must have read it.

        Args:
            ids: int32 on the device, of the step's queries.
            queries: N of them, each of another request; None: one that reads everything.
            lengths: N numbers: the tokens that those read, itself included; 0 for padding.
        """
        num = len(queries)
        slots = [-1 if one is None else self._slot(one) for one in queries]
        host = self._host[: 3 * num].view(3, num)  # in one piece: others are not copied without waiting
        host.numpy()[:] = [0 if one is None else one.place for one in queries], slots, lengths
        table = host.to(self._device, non_blocking=True, copy=True)
        intervals = torch.empty(num, MAX_SPANS, 2, dtype=torch.int32, device=self._device)
        counts = torch.empty(num, dtype=torch.int32, device=self._device)
        self._follower.push(ids, table, intervals, counts)
        for one, slot in zip(queries, slots, strict=True):
            if one is not None:
                self._held[one.followed] = slot, one.index + 1
        return intervals, counts

    def _slot(self, query: LateQuery) -> int:
        """Of the query's request; its tracker has taken in all ids before the query's own."""
        followed = query.followed
        slot, num_pushed = self._held.get(followed, (None, 0))
        if slot is not None and num_pushed == query.index:
            return slot
        # A new request, or one of whose answer a part has been computed once more.
        slot, prompt = self._free.pop() if slot is None else slot, followed.prompt
        start = self._follower.grammar.start(prompt.num_tokens, prompt.scaffold_end, prompt.segments, True)
        self._follower.set(slot, *start)
        self._take_in(slot, followed.ids(query.index))
        return slot

    def _take_in(self, slot: int, written: Sequence[int]) -> None:
        """Ids that the host knows, one after the other."""
        if not written:
            return
        ids = torch.tensor(written, dtype=torch.int32, device=self._device)
        places = torch.arange(len(written), dtype=torch.int32)
        tables = torch.stack([places, torch.full_like(places, slot), torch.zeros_like(places)], 1)[:, :, None]
        intervals = torch.empty(1, MAX_SPANS, 2, dtype=torch.int32, device=self._device)
        counts = torch.empty(1, dtype=torch.int32, device=self._device)
        for table in tables.to(self._device):
            self._follower.push(ids, table.clone(), intervals, counts)
