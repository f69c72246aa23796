"""Rules of a batch's rows where ids are drawn on the device: the host says before each step what every row may write.

A row's rules are told every id as soon as it is in host memory. So the host cannot run ahead while a row has rules;
before each step it copies one table of the vocabulary per row.
"""

import torch

from selfspan_core.engine.rules import Rules


class RowRules:
    """What each row of a batch may write next.

    Args:
        batch: rows.
        vocab_size: ids of the model.
        device: where ids are drawn.
    """

    def __init__(self, batch: int, vocab_size: int, device: torch.device) -> None:
        self._rules: dict[int, Rules] = {}
        self._on_host = torch.ones(batch, vocab_size, dtype=torch.bool, pin_memory=device.type == "cuda")
        self._banned = torch.zeros(batch, vocab_size, dtype=torch.bool, device=device)

    def begin(self, row: int, rules: Rules, logits: torch.Tensor) -> torch.Tensor:
        """A sequence that is held to rules begins in a row.

        Args:
            row: of the batch.
            rules: the row's.
            logits: `[1, vocab_size]` that its first id is drawn from.

        Returns:
            The logits narrowed to what the first id may be.
        """
        self._copy(row, rules)
        self._rules[row] = rules
        return logits.masked_fill(self._banned[row : row + 1], -torch.inf)

    def push(self, row: int, token: int) -> None:
        """A row's next id; nothing happens if it has no rules."""
        rules = self._rules.get(row)
        if rules is not None:
            rules.push(token)

    def end(self, row: int) -> None:
        """A row has no rules any more."""
        if self._rules.pop(row, None) is not None:
            self._banned[row].fill_(False)

    def write(self) -> dict[int, Exception]:
        """Before a step: what every row may write, to the device; no step may be on its way.

        Returns:
            By row, what its rules raised.
        """
        failures: dict[int, Exception] = {}
        for row, rules in self._rules.items():
            try:
                self._copy(row, rules)
            except Exception as error:
                failures[row] = error
        return failures

    def _copy(self, row: int, rules: Rules) -> None:
        """One row of the table, as its rules have it now."""
        only, banned = rules.limits()
        table = self._on_host[row]
        table.fill_(only is not None)
        if only is not None:
            table[list(only)] = False
        if banned:
            table[list(banned)] = True
        if bool(table.all()):
            raise ValueError("the rules leave nothing to write")
        self._banned[row].copy_(table, non_blocking=True)

    def narrowed(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, vocab_size]` with minus infinity at every id that may not come next."""
        return logits.masked_fill(self._banned, -torch.inf)
