"""Which tokens a benchmark's rows see: blocks on a grid, or spans at any offset. Made on the device, batch by batch."""

from dataclasses import dataclass

import torch

CLUSTER_BLOCKS = 8


@dataclass(frozen=True)
class Selection:
    """A way to choose tokens.

    Attributes:
        kind: "random" or "clustered" blocks (runs of 8 neighbours), "spans" of any offset and length, or "all".
        tokens: of a block; of a span on average (lengths are uniform from 1 to twice that, less one).
    """

    kind: str
    tokens: int = 0

    @property
    def name(self) -> str:
        """Short and readable: `random 16`, `spans 4`, `all`."""
        return f"{self.kind} {self.tokens}" if self.tokens else self.kind

    @property
    def is_blocks(self) -> bool:
        """Whether a kernel that works on whole blocks can serve it."""
        return self.kind in ("random", "clustered")


ALL = Selection("all")
SELECTIONS = (
    *(Selection(kind, tokens) for kind in ("random", "clustered") for tokens in (16, 32, 64, 128, 256)),
    *(Selection("spans", tokens) for tokens in (4, 16, 64, 300)),
)


def choose(
    selection: Selection, density: float, batch: int, context: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fresh intervals for every row.

    Args:
        density: share of the context to keep.
        generator: its device is where the tables go.

    Returns:
        intervals int32 `[batch, max_spans, 2]`, sorted and disjoint, and counts int32 `[batch]`. Neighbouring blocks
        stay separate intervals. Spans keep about `density`, blocks as near as their size allows.
    """
    device = generator.device
    if selection.kind == "all":
        starts = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        lengths = torch.full_like(starts, context)
    elif selection.kind == "spans":
        starts, lengths = _spans(selection.tokens, density, batch, context, generator)
    else:
        blocks = kept_blocks(selection, density, batch, context, generator)
        starts = blocks * selection.tokens
        lengths = torch.full_like(starts, selection.tokens)
    intervals = torch.stack([starts, starts + lengths], dim=-1).to(torch.int32).contiguous()
    return intervals, torch.full((batch,), intervals.shape[1], dtype=torch.int32, device=device)


def kept_blocks(
    selection: Selection, density: float, batch: int, context: int, generator: torch.Generator
) -> torch.Tensor:
    """Numbers of the blocks that each row keeps, int64 `[batch, num_kept]`, in order."""
    num_blocks = context // selection.tokens
    num_kept = max(1, round(density * num_blocks))
    run = min(CLUSTER_BLOCKS, num_kept) if selection.kind == "clustered" else 1
    # Whole runs are drawn, and of the last one what is missing.
    num_runs = num_blocks // run
    drawn = _some_of(num_runs, min(num_runs, -(-num_kept // run)), batch, generator)
    blocks = (drawn[..., None] * run + torch.arange(run, device=drawn.device)).flatten(1)
    return blocks[:, :num_kept]


def _some_of(many: int, some: int, batch: int, generator: torch.Generator) -> torch.Tensor:
    """`some` different numbers below `many` per row, int64 `[batch, some]`, in order."""
    scores = torch.rand(batch, many, generator=generator, device=generator.device)
    return scores.topk(some, dim=1).indices.sort(dim=1).values


def _spans(
    mean: int, density: float, batch: int, context: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    device = generator.device
    count = max(1, round(density * context / mean))
    lengths = torch.randint(1, 2 * mean, (batch, count), generator=generator, device=device)
    # All of a row's by one factor, so that it keeps what it should.
    factor = density * context / lengths.sum(dim=1, keepdim=True)
    chance = torch.rand(batch, count, generator=generator, device=device)
    lengths = (lengths * factor + chance).floor().clamp(min=1).to(lengths.dtype)
    free = context - lengths.sum(dim=1, keepdim=True)
    gaps = (torch.rand(batch, count, generator=generator, device=device) * (free + 1)).floor().to(torch.int64)
    before = gaps.sort(dim=1).values
    starts = before + lengths.cumsum(dim=1) - lengths
    return starts, lengths
