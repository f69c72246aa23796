"""What share of drafts is right, by the kind of reason to think so. No torch here."""

from collections import defaultdict

FIRST_GUESS = {
    **{
        "copy": 0.95,
        "name": 0.98,
        "go": 0.98,
        "ref": 0.9,
        "read 1": 0.7,
        "next place": 0.8,
        "next read": 0.8,
        "between": 0.7,
        "behind 0": 0.7,
    },
    **{"again 3": 0.8, "again 2": 0.7, "lookup 2": 0.6, "lookup 3": 0.8, "lookup 4": 0.95},
}
"""What share of a kind of drafts is taken to be right before any was verified; 0.4 where nothing is said."""
WEIGHT_OF_FIRST_GUESS = 4.0
MOST_REMEMBERED = 16.0
"""Drafts of a kind: what one run has seen outweighs the first guess in the next, and is soon outweighed there."""
FADING = 0.9
"""Of what is remembered from run to run, so that a kind that was useless is tried again once in a while."""


class Acceptance:
    """Shares of right drafts, learned while decoding and remembered by a lane from run to run.

    Without memory every run of a text in which nothing recurs verified a dozen wrong drafts before it stopped, which
    made answers of some fifty tokens a third slower.
    """

    def __init__(self) -> None:
        self._right: defaultdict[str, float] = defaultdict(float)
        self._wrong: defaultdict[str, float] = defaultdict(float)

    def begin(self) -> None:
        """A run begins: it may be about another text."""
        for kind in {*self._right, *self._wrong}:
            num = self._right[kind] + self._wrong[kind]
            kept = FADING * min(1.0, MOST_REMEMBERED / num) if num else 0.0
            self._right[kind] *= kept
            self._wrong[kind] *= kept

    def record(self, kind: str, is_right: bool) -> None:
        """A draft of a kind was verified."""
        (self._right if is_right else self._wrong)[kind] += 1

    def share_right(self, kind: str) -> float:
        """The share of drafts of a kind that are expected to be right."""
        right = self._right[kind] + WEIGHT_OF_FIRST_GUESS * FIRST_GUESS.get(kind, 0.4)
        return right / (self._right[kind] + self._wrong[kind] + WEIGHT_OF_FIRST_GUESS)
