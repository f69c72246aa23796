"""Names of several tokens, in place of one id each: what was rendered spelled out, and a tracker that reads it.

    one id       as the protocol has it
    digits       three digits of the anchor's number, everywhere in its place
    first words  nothing in the prompt; a header repeats the first three tokens of what it reads. Where several segments
                 begin alike, that names the first of them. A step's own name is its anchor.

Inside, names stay anchors: the tracker of the protocol goes on telling what is visible, and positions are translated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from selfspan_core.spans.intervals import Interval, merge
from selfspan_core.spans.protocol import Markers, PromptLayout
from selfspan_core.spans.render import Rendered, VisibleRun
from selfspan_core.spans.tracker import Phase, State, Tracker

ONE_ID, DIGITS, FIRST_WORDS = "one id", "digits", "first words"
SPELLINGS = (ONE_ID, DIGITS, FIRST_WORDS)
WIDTH = 3
"""Tokens of a spelled name."""


class Ambiguous(ValueError):
    """A step reads a segment whose spelled name is that of another."""


@dataclass(frozen=True)
class Spelling:
    """How the names of one prompt are written.

    Attributes:
        kind: one of SPELLINGS.
        spelled: anchor id -> the ids that a header writes for it; anchors that are not in it are written as they are.
        in_prompt: the same in the prompt.
    """

    kind: str
    spelled: dict[int, tuple[int, ...]]
    in_prompt: dict[int, tuple[int, ...]]

    @classmethod
    def of(cls, kind: str, rendered: Rendered, markers: Markers, digits: Sequence[int]) -> "Spelling":
        """The spelling of a prompt's names.

        Args:
            kind: one of SPELLINGS.
            rendered: the prompt, with or without steps.
            markers: of its tokenizer.
            digits: ids of "0" to "9".

        Raises:
            ValueError: there is no such kind.
        """
        if kind == DIGITS:
            every = {
                anchor: tuple(digits[int(digit)] for digit in f"{number:0{WIDTH}d}")
                for number, anchor in enumerate(markers.anchors)
            }
            return cls(kind, every, every)
        segments = rendered.prompt.segments
        if kind == FIRST_WORDS:
            words = {
                name: tuple(rendered.ids[start + 1 : min(start + 1 + WIDTH, end)])
                for name, (start, end) in segments.items()
            }
            return cls(kind, words, dict.fromkeys(segments, ()))
        if kind != ONE_ID:
            raise ValueError(f"spellings are {', '.join(SPELLINGS)}, not {kind!r}")
        return cls(kind, {}, {})

    def named_by(self, ids: tuple[int, ...], segments: Sequence[int]) -> int | None:
        """The anchor that spelled ids name: of `segments` the first that is spelled so; else any."""
        known = (name for name in segments if self.spelled.get(name) == ids)
        return next(known, next((name for name, own in self.spelled.items() if own == ids), None))


@dataclass(frozen=True)
class Spelled:
    """A rendered example with spelled names.

    Attributes:
        rendered: it, its positions those of the spelled ids.
        starts: of every position before spelling, the first of its positions now.
        spelling: of its names.
    """

    rendered: Rendered
    starts: list[int]
    spelling: Spelling


def spell_out(rendered: Rendered, spelling: Spelling, markers: Markers) -> Spelled:
    """Write an example's names as a spelling has them.

    Raises:
        Ambiguous: a step reads a segment that its spelled name does not name, or whose name is too short.
    """
    ids: list[int] = []
    loss_mask: list[int] = []
    starts: list[int] = []
    in_header = False
    order = sorted(rendered.prompt.segments, key=lambda name: rendered.prompt.segments[name])
    for position, token in enumerate(rendered.ids):
        is_prompt = position < rendered.prompt.num_tokens
        in_header = not is_prompt and (token == markers.ref or (in_header and token != markers.go))
        written: tuple[int, ...] = (token,)
        if token in markers.anchor_index:
            written = (spelling.in_prompt if is_prompt else spelling.spelled).get(token, (token,))
            is_read = in_header and token in rendered.prompt.segments
            if is_read and token in spelling.spelled and not _names(spelling, token, written, order):
                raise Ambiguous(f"the name {written} is that of another segment")
        starts.append(len(ids))
        ids += written
        loss_mask += [rendered.loss_mask[position]] * len(written)
    at: Callable[[int], int] = lambda place: starts[place] if place < len(starts) else len(ids)  # noqa: E731
    runs = [
        VisibleRun(at(run.first), _moved(run.context, at), at(run.own_start), run.reads_index) for run in rendered.runs
    ]
    prompt = moved_layout(rendered.prompt, at)
    return Spelled(replace(rendered, ids=ids, prompt=prompt, loss_mask=loss_mask, runs=runs), starts, spelling)


def _names(spelling: Spelling, name: int, written: tuple[int, ...], order: Sequence[int]) -> bool:
    return len(written) == WIDTH and spelling.named_by(written, order) == name


def _moved(intervals: Sequence[Interval], at: Callable[[int], int]) -> tuple[Interval, ...]:
    return merge([(at(start), at(end)) for start, end in intervals])


def moved_layout(prompt: PromptLayout, at: Callable[[int], int]) -> PromptLayout:
    """A prompt's layout with its positions translated."""
    segments = {name: (at(start), at(end)) for name, (start, end) in prompt.segments.items()}
    return PromptLayout(at(prompt.num_tokens), at(prompt.scaffold_end), segments, prompt.head_tokens)


class SpelledTracker:
    """Follows ids that spell names; see `spans.tracker.Tracker`.

    Args:
        markers: of the tokenizer.
        inner: the prompt's layout before it was spelled.
        spelled: the prompt, without steps.

    Attributes:
        ids: that were pushed, with anchors for what they spell.
    """

    def __init__(self, markers: Markers, inner: PromptLayout, spelled: Spelled) -> None:
        self._markers, self._spelling = markers, spelled.spelling
        self._tracker = Tracker(markers, inner)
        self._order = sorted(inner.segments, key=lambda name: inner.segments[name])
        self._starts = list(spelled.starts)
        self._position = spelled.rendered.prompt.num_tokens - 1
        self._half: list[int] = []
        self._in_header = False
        self.ids: list[int] = []

    @property
    def num_malformed(self) -> int:
        """Steps that broke the grammar."""
        return self._tracker.num_malformed

    @property
    def num_steps(self) -> int:
        """Steps that were begun."""
        return len(self._tracker.steps)

    def push(self, token: int) -> State:
        """The next id; what its query sees."""
        self._position += 1
        if self._in_header and self._spelling.spelled and not self._is_marker(token):
            self._half.append(token)
            if len(self._half) < WIDTH:
                return State(Phase.HEADER, self._position, (), 0, len(self._tracker.steps) - 1)
            return self._whole_name(token)
        if self._half:  # a name that ends too early is text where a name belongs
            self._take(self._half[0], self._position - len(self._half))
            self._half = []
        return self._take(token, self._position)

    def _is_marker(self, token: int) -> bool:
        return token in self._markers.ids or token == self._markers.eos

    def _whole_name(self, token: int) -> State:
        name = self._spelling.named_by(tuple(self._half), self._order)
        first = self._position - len(self._half) + 1
        self._half = []
        return self._take(token if name is None else name, first)

    def _take(self, token: int, first: int) -> State:
        """Push an id that begins at a position, and translate what is said of it."""
        self._starts.append(first)
        self.ids.append(token)
        state = self._tracker.push(token)
        self._in_header = state.phase is Phase.HEADER and token != self._markers.go
        behind = self._position + 1
        at: Callable[[int], int] = lambda place: self._starts[place] if place < len(self._starts) else behind  # noqa: E731
        context = _moved(state.context, at)
        return state._replace(position=self._position, context=context, own_start=at(state.own_start))
