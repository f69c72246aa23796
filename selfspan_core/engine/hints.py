"""What a task knows of its steps that helps to draft them. A task says it; the drafters use it. No torch here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DraftHints:
    """Words that are fixed by a task; without them its steps are drafted less well, and nothing else changes.

    Attributes:
        num_reads: segments that a header is likely to name.
        between: ids that stand between the copies of two segments, if they stand between them in the prompt, too.
        behind: ids that follow the copies.
        recurs: whether steps recur, each reading a segment of the prompt that others read before, as in a loop. Drafts
            of the host use it (`engine.recurring`), those of a GPU do not.
    """

    num_reads: int = 1
    between: frozenset[int] = frozenset()
    behind: tuple[int, ...] = ()
    recurs: bool = False
