"""Small worlds for the tests of tracker, attention and engine: markers, random id streams, random worked examples."""

import random

from hypothesis import strategies as st

from selfspan_core.spans.protocol import Markers, PromptLayout
from selfspan_core.spans.render import Example, Part, Step

NUM_NAMES = 24
MARKERS = Markers(bos=1, eos=2, ref=3, go=4, res=5, end=6, anchors=tuple(range(7, 7 + NUM_NAMES)))
FIRST_TEXT = 7 + NUM_NAMES
VOCAB = FIRST_TEXT + 33

PROMPT = PromptLayout(12, 3, {MARKERS.anchors[0]: (3, 6), MARKERS.anchors[1]: (7, 9), MARKERS.anchors[2]: (10, 11)})
"""Scaffold [0, 3), three segments, the rest in no segment."""


def _token() -> st.SearchStrategy[int]:
    """Any id, markers far more often than chance has it: most streams come close to the grammar and then break it."""
    structure = st.sampled_from([MARKERS.ref, MARKERS.go, MARKERS.res, MARKERS.end])
    text = st.integers(FIRST_TEXT, VOCAB - 1)
    names = st.sampled_from(MARKERS.anchors[:6])
    return st.one_of(structure, structure, names, text, text, st.just(MARKERS.eos), st.integers(0, VOCAB - 1))


def _fragment() -> st.SearchStrategy[list[int]]:
    """A whole step, well formed or nearly, or a single id."""
    header = st.lists(st.sampled_from(MARKERS.anchors[:10]), max_size=11)
    body = st.lists(_token() | st.integers(FIRST_TEXT, VOCAB - 1), max_size=6)
    plain_body = st.lists(st.integers(FIRST_TEXT, VOCAB - 1), max_size=6)
    step = st.tuples(header, body | plain_body, st.booleans(), plain_body, st.booleans())
    return st.one_of(
        _token().map(lambda token: [token]),
        step.map(
            lambda s: [
                *(MARKERS.ref, *s[0], MARKERS.go, *s[1]),
                *([MARKERS.res] if s[2] else []),
                *s[3],
                *([MARKERS.end] if s[4] else []),
            ]
        ),
    )


STREAMS = st.lists(_fragment(), max_size=14).map(lambda fragments: [token for part in fragments for token in part])


def text(rng: random.Random, length: int) -> tuple[int, ...]:
    return tuple(rng.randrange(FIRST_TEXT, VOCAB) for _ in range(length))


def worked_example(seed: int, num_segments: int = 5, num_steps: int = 8, loose_text: bool = True) -> Example:
    """A random well-formed example; `loose_text`: the prompt has text that belongs to no segment."""
    rng = random.Random(seed)
    parts, steps = [], []
    for name in MARKERS.anchors[:num_segments]:
        parts.append(Part(text(rng, rng.randint(1, 3)), name))
        if loose_text:
            parts.append(Part(text(rng, rng.randint(1, 2))))
    for index in range(num_steps):
        known = MARKERS.anchors[: num_segments + index]
        reads = tuple(rng.sample(known, rng.randint(0, min(3, len(known)))))
        name = MARKERS.anchors[num_segments + index]
        steps.append(Step(reads, name, text(rng, rng.randint(0, 9)), text(rng, rng.randint(1, 4))))
    return Example((MARKERS.bos, *text(rng, 3)), tuple(parts), tuple(steps))
