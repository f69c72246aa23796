"""Which queries of a step read less than everything, and where in the paged cache what they read lies.

Planned once per step, used by every layer. A page (vLLM: block) that holds no visible token is not touched, and at the
edges of an interval only the visible tokens of a page are read: visibility is exact to the token, whatever the page
size. Knows neither vLLM nor the layout within a page, so that another backend can use it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from selfspan_core.serve.vllm_plugin.followed import SpanRows
from selfspan_core.serve.vllm_plugin.step_table import selected_queries


@dataclass(frozen=True)
class SelectedQueries:
    """The queries of a step that read less than everything; Q of them read T tokens in all.

    Attributes:
        queries: int64 `[Q]`, where they stand among the step's queries.
        pages: int64 `[T]`, the page in the cache of each token that is read, query after query.
        offsets: int64 `[T]`, its place within the page.
        bounds: Q + 1 numbers; query i reads the tokens `bounds[i]` to `bounds[i + 1]`.
        dense_rows: rows of the batch that have other queries, too, or only such.
    """

    queries: torch.Tensor
    pages: torch.Tensor
    offsets: torch.Tensor
    bounds: list[int]
    dense_rows: list[int]


def planned(
    rows: SpanRows, query_starts: Sequence[int], seq_lens: Sequence[int], block_table: torch.Tensor, page_size: int
) -> SelectedQueries | None:
    """The plan of a step; None where every query reads everything.

    Args:
        rows: the requests with self-selected attention; what this step reads is added to their sums.
        query_starts: where each row's queries begin among the step's, and where the last row's end.
        seq_lens: tokens of each row, those of this step included.
        block_table: integers `[num_rows, max_pages]`, a row's pages in order.
        page_size: tokens per page.
    """
    selected = selected_queries(rows, query_starts, seq_lens)
    if not selected:
        return None
    positions = [torch.cat([torch.arange(start, end) for start, end in one.visible]) for one in selected]
    every, lengths = torch.cat(positions), torch.tensor([len(seen) for seen in positions])
    row_of_token = torch.tensor([one.row for one in selected]).repeat_interleave(lengths)
    pages = block_table[row_of_token.to(block_table.device), (every // page_size).to(block_table.device)].long()
    num_selected = Counter(one.row for one in selected)
    num_queries = [end - start for start, end in pairwise(query_starts)]
    return SelectedQueries(
        torch.tensor([one.place for one in selected]),
        pages,
        every % page_size,
        [0, *accumulate(lengths.tolist())],
        [row for row in range(len(seq_lens)) if num_selected[row] < num_queries[row]],
    )
