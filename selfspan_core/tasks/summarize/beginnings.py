"""How sentences of an article begin: what keeps a plain lane, which names nothing, from a sentence that it has written.

It may go wherever a sentence leads that it has not begun yet, and is turned back nowhere else: an id that is withheld
in the middle of a sentence, with any other in its place, makes a sentence that begins like two of the article and is
neither. No torch here.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from selfspan_core.engine.device_rules import MOST_WAYS

START = 8
"""Two bodies with the same so many ids at their beginnings are one sentence."""


class Onward(NamedTuple):
    """What may come next: none of `banned`; and one of `ways`, if there are any."""

    banned: tuple[int, ...]
    ways: tuple[int, ...]


class Beginnings:
    """The beginnings of one article's sentences; never changed.

    Args:
        article: its ids.
        marks: ids behind which a sentence begins, about: those that end one, and line breaks.
        unfit: ids that no body may hold.
    """

    def __init__(self, article: Sequence[int], marks: Collection[int], unfit: Collection[int]) -> None:
        places = (0, *(at for at, token in enumerate(article[:-1], start=1) if token in marks))
        self._starts = [tuple(article[at : at + START]) for at in places]
        self._unfit = frozenset(unfit)

    def onward(self, body: Sequence[int], bodies: Sequence[Sequence[int]]) -> Onward:
        """How a body may go on.

        Args:
            body: its ids so far.
            bodies: those before it.
        """
        begun = {tuple(other[:START]) for other in bodies if len(other) >= START}
        at, written = len(body), tuple(body)
        fresh = [start for start in self._starts if start not in begun and start[:at] == written]
        led_to = {start[at] for start in fresh if len(start) > at}
        banned = tuple({other[at] for other in begun if other[:at] == written} - led_to) if at < START else ()
        if at == 0 or not banned:
            return Onward(banned, ())
        return Onward(
            (), tuple(start[at] for start in fresh if len(start) > at and start[at] not in self._unfit)[:MOST_WAYS]
        )
