"""Which queries of a step read less than everything, and where in the paged cache what they read lies.

Planned once per step, used by every layer. A page (vLLM: block) that holds no visible token is not touched, and at the
edges of an interval only the visible tokens of a page are read: visibility is exact to the token, whatever the page
size. Knows neither vLLM nor the layout within a page, so that another backend can use it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from selfspan_core.serve.vllm_plugin.followed import SpanRows


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
    queries: list[int] = []
    positions: list[torch.Tensor] = []
    of_rows: list[int] = []
    bounds = [0]
    dense_rows: list[int] = []
    for row, seq_len in enumerate(seq_lens):
        first_query, num_queries = query_starts[row], query_starts[row + 1] - query_starts[row]
        followed = rows.followed.get(row)
        num_selected = 0
        for index in range(num_queries if followed is not None else 0):
            visible = followed.visible(seq_len - num_queries + index) if followed is not None else None
            if visible is None:
                continue
            seen = torch.cat([torch.arange(start, end) for start, end in visible])
            queries.append(first_query + index)
            positions.append(seen)
            of_rows.append(row)
            bounds.append(bounds[-1] + len(seen))
            num_selected += 1
        if num_selected < num_queries:
            dense_rows.append(row)
    if not queries:
        return None
    every = torch.cat(positions)
    lengths = torch.tensor([len(seen) for seen in positions])
    row_of_token = torch.tensor(of_rows).repeat_interleave(lengths)
    pages = block_table[row_of_token.to(block_table.device), (every // page_size).to(block_table.device)].long()
    rows.num_queries += len(queries)
    rows.num_read += bounds[-1]
    return SelectedQueries(torch.tensor(queries), pages, every % page_size, bounds, dense_rows)
