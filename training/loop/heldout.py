"""Figures on held-out samples by teacher forcing: loss, and how many answers greedy decoding would reproduce exactly.

Greedy decoding writes a given answer exactly if and only if every one of its tokens is the arg-max given the tokens
before it, so exactness needs one forward pass and no decoding.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from training.loop.loss import LanguageModelLoss
from training.loop.packing import IGNORE, Row, Sample, stack
from training.loop.trainer import to_device


def require_room(lengths: Iterable[int], row_tokens: int, what: str) -> None:
    """Check that held-out samples of these lengths (tokens) fit into rows: before training, not at its end.

    Raises:
        ValueError: one has more than `row_tokens` tokens; the message names the setting and `what` does not fit.
    """
    longest = max(lengths, default=0)
    if longest > row_tokens:
        raise ValueError(
            f"loop.row_tokens is {row_tokens}, but {what} take up to {longest} tokens each: they do not fit into a row"
        )


def heldout_loss(module: LanguageModelLoss, device: torch.device, rows: Sequence[Row], micro_rows: int) -> float:
    """Mean loss in nats per target token over packed rows."""
    total, count = 0.0, 0
    for labels, logits in _forward(module, device, rows, micro_rows):
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        total += losses.item()
        count += int((labels != IGNORE).sum().item())
    return total / max(count, 1)


def exact_answers(
    module: LanguageModelLoss,
    device: torch.device,
    samples: Sequence[Sample],
    answers: Sequence[Sequence[tuple[int, int]]],
    row: tuple[int, int, int],
    micro_rows: int,
) -> float:
    """Share of answers that greedy decoding reproduces token for token.

    Args:
        samples: one example each.
        answers: per sample the token ranges `[start, end)` that are answers.
        row: (row_tokens, max_intervals, pad_id) of the rows to pack into.
    """
    rows: list[Row] = []
    places: list[tuple[int, int, int]] = []
    for sample, ranges in zip(samples, answers, strict=True):
        if not rows or rows[-1].room < len(sample.ids):
            rows.append(Row(*row))
        offset = rows[-1].used
        rows[-1].add(sample)
        places += [(len(rows) - 1, offset + start, offset + end) for start, end in ranges]
    ids = np.stack([r.ids for r in rows])
    predicted = np.concatenate(
        [logits.argmax(-1).cpu().numpy() for _, logits in _forward(module, device, rows, micro_rows)]
    )
    right = [(predicted[r, start - 1 : end - 1] == ids[r, start:end]).all() for r, start, end in places]
    return float(np.mean(right))


def _forward(module: LanguageModelLoss, device: torch.device, rows: Sequence[Row], micro_rows: int):
    for first in range(0, len(rows), micro_rows):
        chunk = list(rows[first : first + micro_rows])
        # A short last batch would be a new shape to compile for.
        chunk += [Row(len(chunk[0].ids), chunk[0].bounds.shape[1], 0) for _ in range(micro_rows - len(chunk))]
        batch = to_device({key: torch.from_numpy(value) for key, value in stack(chunk).items()}, device)
        real = min(micro_rows, len(rows) - first)
        yield batch["labels"][:real], module.logits(batch["ids"], batch["bounds"], batch.get("indexed"))[:real]
