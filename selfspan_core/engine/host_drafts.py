"""Drafts that the host proposes for a row: what it keeps of the row to do so. No torch here."""

from collections.abc import Sequence

from selfspan_core.engine.drafts import Drafter, DraftState, verifiable
from selfspan_core.spans.tracker import State, Tracker


class HostDrafts:
    """One row's text, tracker and drafter.

    Args:
        drafter: of this run alone.
        tracker: of the row, behind its prompt.
        prompt_ids: the prompt.
        vocab_size: ids of the model.
        max_bodies: see `drafts.verifiable`.
    """

    def __init__(
        self, drafter: Drafter, tracker: Tracker, prompt_ids: Sequence[int], vocab_size: int, max_bodies: int
    ) -> None:
        self._drafter, self._tracker, self._ids = drafter, tracker, list(prompt_ids)
        self._num_prompt, self._vocab_size, self._max_bodies = len(prompt_ids), vocab_size, max_bodies
        self._state: State | None = None

    def push(self, token: int) -> None:
        """The row's next id."""
        self._state = self._tracker.push(token)
        self._ids.append(token)

    def propose(self, most: int) -> Sequence[int]:
        """Drafts to verify behind the last id, at most `most`; none before there is one."""
        if most < 1 or self._state is None:
            return ()
        state = DraftState(self._ids, self._num_prompt, self._tracker, self._state)
        drafts = self._drafter.propose(state, most)[:most]
        return verifiable(drafts, self._tracker, self._state, self._vocab_size, self._max_bodies)[0]
