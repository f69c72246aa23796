"""Rules that the host keeps of a batch's rows: before each step it says to the device what every row may write.

A row's rules are told every id as soon as it is in host memory. So the host cannot run ahead while a row has rules;
before each step it copies one table of the vocabulary per query of the row: what may follow the row's last id, and what
may follow each of its drafts.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from selfspan_core.engine.rules import Rules, rules_speak


class Ahead(NamedTuple):
    """What the rules of a batch's rows say before a step that verifies drafts.

    Attributes:
        failures: by row, what its rules raised.
        num_kept: by row with drafts, how many of them, from the first on, its rules do not forbid; all, if it has none.
    """

    failures: dict[int, Exception]
    num_kept: dict[int, int]


class RowRules:
    """What each row of a batch may write next.

    Args:
        batch: rows.
        vocab_size: ids of the model.
        device: where ids are drawn.
        num_queries: of each row in a step: its last id and the most drafts behind it.
    """

    def __init__(self, batch: int, vocab_size: int, device: torch.device, num_queries: int = 1) -> None:
        self._rules: dict[int, Rules] = {}
        shape = (batch, num_queries, vocab_size)
        self._on_host = torch.ones(shape, dtype=torch.bool, pin_memory=device.type == "cuda")
        # The same memory: NumPy writes a few ids in a fraction of the time that PyTorch takes.
        self._tables = self._on_host.numpy()
        self._banned = torch.zeros(shape, dtype=torch.bool, device=device)
        self._num_tables = [0] * batch
        """Of each row, from its first query on, that may ban something."""

    def begin(self, row: int, rules: Rules, logits: torch.Tensor) -> torch.Tensor:
        """A sequence that is held to rules begins in a row.

        Args:
            row: of the batch.
            rules: the row's.
            logits: `[1, vocab_size]` that its first id is drawn from.

        Returns:
            The logits narrowed to what the first id may be.
        """
        self._copy(row, rules, ())
        self._rules[row] = rules
        return logits.masked_fill(self._banned[row, :1], -torch.inf)

    def push(self, row: int, token: int) -> None:
        """A row's next id; nothing happens if it has no rules."""
        rules = self._rules.get(row)
        if rules is not None:
            with rules_speak():
                rules.push(token)

    def end(self, row: int) -> None:
        """A row has no rules any more."""
        if self._rules.pop(row, None) is not None:
            self._release(row, 0)

    def write_ahead(self, drafts: Mapping[int, Sequence[int]]) -> Ahead:
        """Before a step: what every row may write, to the device; no step may be on its way.

        Query 0 of a row may write what its rules allow now, query j what they allow behind the first j drafts. A draft
        that is forbidden where it stands is dropped with all behind it; so is a draft behind which the rules leave
        nothing or raise, since it may not come to that. Queries behind the last draft are held to nothing.

        Args:
            drafts: by row, ids of the vocabulary, fewer than `num_queries`.

        Returns:
            What failed, and how many drafts are left; none of a row that failed.

        Raises:
            ValueError: a row has too many drafts.
        """
        most = self._banned.shape[1] - 1
        for row, proposed in drafts.items():
            if len(proposed) > most:
                raise ValueError(f"drafts: row {row} has {len(proposed)}, and there are queries for {most}")
        failures: dict[int, Exception] = {}
        num_kept = {row: len(proposed) for row, proposed in drafts.items()}
        for row, rules in self._rules.items():
            proposed = drafts.get(row, ())
            try:
                num = self._copy(row, rules, proposed)
            except Exception as error:
                failures[row], num = error, 0
            if row in drafts:
                num_kept[row] = num
        return Ahead(failures, num_kept)

    def _copy(self, row: int, rules: Rules, drafts: Sequence[int]) -> int:
        """A row's tables, as its rules have them now, to the device in one copy; how many drafts are left."""
        tables = self._tables[row]
        _fill(tables[0], rules)
        num = self._fill_behind(tables, rules.fork(), drafts) if drafts else 0
        self._banned[row, : num + 1].copy_(self._on_host[row, : num + 1], non_blocking=True)
        self._release(row, num + 1)
        return num

    def _fill_behind(self, tables: np.ndarray, rules: Rules, drafts: Sequence[int]) -> int:
        """The tables of the queries behind drafts, from the second on; the first is filled. How many drafts are left.

        Args:
            tables: `[num_queries, vocab_size]`, in host memory.
            rules: the row's, a copy that is pushed on.
            drafts: of the row.
        """
        for place, draft in enumerate(drafts):
            if bool(tables[place, draft]):
                return place
            try:
                rules.push(draft)
                _fill(tables[place + 1], rules)
            except Exception:
                # Whatever is wrong comes up again, and ends the row, if this draft turns out right.
                return place
        return len(drafts)

    def _release(self, row: int, num_tables: int) -> None:
        """A row's queries are held to nothing from the one of this number on."""
        if num_tables < self._num_tables[row]:
            self._banned[row, num_tables : self._num_tables[row]].fill_(False)
        self._num_tables[row] = num_tables

    def narrowed(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits `[batch * num, vocab_size]` of the first `num` queries of each row, with minus infinity at every id
        that may not come next.
        """
        batch, _, vocab_size = self._banned.shape
        by_row = logits.view(batch, -1, vocab_size)
        return by_row.masked_fill(self._banned[:, : by_row.shape[1]], -torch.inf).view_as(logits)


def _fill(table: np.ndarray, rules: Rules) -> None:
    """True in a table `[vocab_size]` in host memory wherever rules forbid an id; a ValueError if they leave nothing."""
    with rules_speak():
        only, banned = rules.limits()
    table.fill(only is not None)
    if only is not None:
        table[np.asarray(only, dtype=np.intp)] = False
    table[np.asarray(banned, dtype=np.intp)] = True
    if table.all():
        raise ValueError("the rules leave nothing to write")
