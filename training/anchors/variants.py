"""The variants of anchors that are compared, and prompts and answers laid out as one of them has it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.spans.protocol import NUM_ANCHORS
from selfspan_core.spans.render import Rendered, render
from training.anchors.pieces import AS_THEY_ARE, TooManyReads, cut_anew, example_of
from training.anchors.spelling import (
    DIGITS,
    FIRST_WORDS,
    ONE_ID,
    Ambiguous,
    Spelled,
    SpelledTracker,
    Spelling,
    spell_out,
)


@dataclass(frozen=True)
class Variant:
    """One kind of anchors.

    Attributes:
        name: in results and on command lines.
        spelling: one of `spelling.SPELLINGS`.
        is_behind: whether a name stands behind its segment, not before it.
        pieces: one of `pieces.PIECES`.
        is_in_order: whether names begin at the first anchor, not at a random one.
    """

    name: str
    spelling: str = ONE_ID
    is_behind: bool = False
    pieces: str = AS_THEY_ARE
    is_in_order: bool = False


USUAL = Variant("usual")
_COMMON = (USUAL, Variant("digits", DIGITS), Variant("behind", is_behind=True), Variant("in order", is_in_order=True))
VARIANTS = {
    "arithmetic": (*_COMMON, Variant("pairs", pieces="pairs")),
    "summarize": (
        *_COMMON,
        Variant("first words", FIRST_WORDS),
        *(Variant(pieces, pieces=pieces) for pieces in ("three sentences", "32 tokens", "random")),
    ),
}
"""By task; each differs from the usual one in one thing."""


@dataclass(frozen=True)
class Laid:
    """An example as a variant has it.

    Attributes:
        inner: with one id a name.
        spelled: as a model reads and writes it.
    """

    inner: Rendered
    spelled: Spelled

    @property
    def rendered(self) -> Rendered:
        """What a model reads and writes."""
        return self.spelled.rendered

    def tracker(self, tokenizer: SpanTokenizer) -> SpelledTracker:
        """What follows an answer to it; of an example without steps."""
        return SpelledTracker(tokenizer.markers, self.inner.prompt, self.spelled)


def laid_out(rendered: Rendered, variant: Variant, tokenizer: SpanTokenizer, rng: random.Random) -> Laid:
    """An example, rendered as usual, as a variant has it.

    Args:
        rendered: with or without steps.
        variant: the variant.
        tokenizer: its tokenizer.
        rng: draws the first name, and random cuts.

    Raises:
        Ambiguous, TooManyReads: the variant has no way to say what a step reads.
    """
    markers = tokenizer.markers
    offset = 0 if variant.is_in_order else rng.randrange(NUM_ANCHORS)
    inner = render(cut_anew(example_of(rendered, markers), variant.pieces, markers, offset, rng), markers)
    spelled = spell_out(inner, Spelling.of(variant.spelling, inner, markers, digits_of(tokenizer)), markers)
    return Laid(inner, _with_names_behind(spelled) if variant.is_behind else spelled)


def digits_of(tokenizer: SpanTokenizer) -> tuple[int, ...]:
    """Ids of "0" to "9". Raises ValueError where a tokenizer has no single id for one."""
    ids = [tokenizer.encode(f"0{digit}")[-1] for digit in range(10)]
    if [tokenizer.decode([one]) for one in ids] != [str(digit) for digit in range(10)]:
        raise ValueError("the tokenizer has no ids of single digits")
    return tuple(ids)


def _with_names_behind(spelled: Spelled) -> Spelled:
    """The names of a prompt's segments behind them; a segment is as long as it was."""
    ids = list(spelled.rendered.ids)
    for name, (start, end) in spelled.rendered.prompt.segments.items():
        width = len(spelled.spelling.in_prompt.get(name, (name,)))
        ids[start:end] = ids[start + width : end] + ids[start : start + width]
    return replace(spelled, rendered=replace(spelled.rendered, ids=ids))


def training_examples(
    examples: Iterator[Rendered], variant: Variant, tokenizer: SpanTokenizer, seed: int, worker: int
) -> Iterator[Rendered]:
    """A stream of examples as a variant has them; those that it has no way to say are left out."""
    rng = random.Random(f"anchors {variant.name} {seed} {worker}")
    for example in examples:
        try:
            laid = laid_out(example, variant, tokenizer, rng)
        except (Ambiguous, TooManyReads):
            continue
        yield laid.rendered
