"""What a batch of captured steps is to hold. No torch here."""

from dataclasses import dataclass
from typing import Literal

from selfspan_core.params import MAX_DRAFTS, Drafts

RoundsKind = Literal["single", "index", "drafts", "rules"]
"""One id per step; the same with headers that may see an index; drafts; drafts and rules that are kept without the
host."""
SIZES = (1, 4, 8, 16)
"""Queries per row of the steps that "auto" chooses from."""
MAX_TOKENS, MIN_LARGEST_SIZE = 512, 4
"""Tokens of all rows above which a step is made of products more than of reading; a small size is tried anyway."""


@dataclass(frozen=True)
class BatchShape:
    """What a batch is to hold.

    Attributes:
        batch: rows.
        capacity: positions of each row, prompt and answer together.
        is_dense: every query reads everything, whatever is declared.
        with_rules: whether requests may have rules that the host keeps; a step then narrows its logits to what each row
            may write.
        drafts: whether steps verify drafts: "off"; "auto": as many as pay, by measured times; or so many in every step,
            1 to MAX_DRAFTS.
        with_device_rules: whether requests may have rules that a step keeps by itself.
        with_index: whether headers may see an index; of steps without drafts, and without rules of their own.

    Raises:
        ValueError: a number of drafts that no step verifies, or an index beside drafts.
    """

    batch: int
    capacity: int
    is_dense: bool
    with_rules: bool = False
    drafts: Drafts = "off"
    with_device_rules: bool = False
    with_index: bool = False

    def __post_init__(self) -> None:
        is_number = isinstance(self.drafts, int) and not isinstance(self.drafts, bool)
        if self.drafts not in ("off", "auto") and not (is_number and 1 <= int(self.drafts) <= MAX_DRAFTS):
            raise ValueError(f"drafts is off, auto or 1 to {MAX_DRAFTS}, not {self.drafts!r}")
        if self.with_index and (self.drafts != "off" or self.with_device_rules):
            raise ValueError("headers that see an index: not with drafts or rules in the step")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Queries of a row in a step, of every kind of step, ascending."""
        if self.drafts == "off":
            return (1,)
        if self.drafts == "auto":
            return tuple(size for size in SIZES if size <= MIN_LARGEST_SIZE or size * self.batch <= MAX_TOKENS)
        return (1 + self.drafts,)

    @property
    def rounds(self) -> RoundsKind:
        """What rows may have beside an id per step."""
        if self.with_device_rules:
            return "rules"
        if self.with_index:
            return "index"
        return "single" if self.sizes == (1,) else "drafts"

    @property
    def is_drafted(self) -> bool:
        """Whether steps verify drafts."""
        return self.rounds in ("drafts", "rules")
