"""Rows of a batch whose ids the host has to see before the next step: it keeps their rules, or drafts for them."""

from collections.abc import Sequence
from dataclasses import dataclass

from cuda_kernels.drafts import MAX_BODIES
from selfspan_core.engine.host_drafts import HostDrafts
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.row_rules import RowRules
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.tracker import Tracker


@dataclass
class _Followed:
    num_left: int
    with_logits: bool
    drafted: HostDrafts | None


@dataclass(frozen=True)
class Prepared:
    """What the host says before a step.

    Attributes:
        drafts: by row.
        failures: by row, why it cannot go on.
    """

    drafts: dict[int, Sequence[int]]
    failures: dict[int, Exception]


class FollowedRows:
    """The rows of one batch that the host follows.

    Args:
        markers: the tokenizer's marker ids.
        vocab_size: ids of the model.
        rules: of the batch's rows, if the host may have to keep any.
    """

    def __init__(self, markers: Markers, vocab_size: int, rules: RowRules | None) -> None:
        self._markers, self._vocab_size, self._rules = markers, vocab_size, rules
        self._rows: dict[int, _Followed] = {}
        self._failed: dict[int, Exception] = {}  # rows whose end nobody has heard of yet

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __iter__(self):
        return iter(tuple(self._rows))

    def begin(self, row: int, request: PromptRequest, max_new_tokens: int) -> None:
        """A sequence begins in a row; nothing happens if nobody has to follow it."""
        drafter, drafted = request.host_drafter, None
        if drafter is not None:
            tracker = Tracker(self._markers, request.prompt.prompt, request.annotated)
            drafted = HostDrafts(drafter, tracker, request.prompt_ids, self._vocab_size, MAX_BODIES)
        is_ruled = request.host_rules is not None and not request.forced_tokens
        if request.with_logits or is_ruled or drafted is not None:
            self._rows[row] = _Followed(max_new_tokens, request.with_logits, drafted)

    def with_logits(self, row: int) -> bool:
        """Whether the row's request asks for logits."""
        return self._rows[row].with_logits

    def push(self, row: int, token: int) -> None:
        """A row's next id; what is kept of a row that is at its end is forgotten.

        Raises:
            Exception: what its rules raise.
        """
        followed = self._rows.get(row)
        if followed is None:
            return
        if self._rules is not None:
            self._rules.push(row, token)
        if followed.drafted is not None:
            followed.drafted.push(token)
        followed.num_left -= 1
        if token == self._markers.eos or followed.num_left == 0:
            self.forget(row)

    def fail(self, row: int, error: Exception) -> None:
        """A row's first id was too much for its rules: the next step tells of it."""
        self._failed[row] = error

    def forget(self, row: int) -> None:
        """A row is at its end."""
        self._rows.pop(row, None)
        self._failed.pop(row, None)
        if self._rules is not None:
            self._rules.end(row)

    def prepare(self, size: int) -> Prepared:
        """Before a step of `size` queries per row: drafts, and the rules' tables, which are on their way then."""
        drafts: dict[int, Sequence[int]] = {}
        failures, self._failed = self._failed, {}
        for row, followed in self._rows.items():
            if followed.drafted is None:
                continue
            try:
                drafts[row] = followed.drafted.propose(min(size - 1, followed.num_left - 1))
            except Exception as error:  # a defect of a drafter ends its row alone
                failures[row] = error
        if self._rules is not None:
            ahead = self._rules.write_ahead(drafts)
            failures |= ahead.failures
            drafts = {row: ids[: ahead.num_kept[row]] for row, ids in drafts.items()}
        return Prepared(drafts, failures)
