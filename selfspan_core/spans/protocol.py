"""The span protocol: which ids mark a step, and where the segments of a prompt lie.

    prompt   <bos> scaffold  <|a0|>79 * <|a1|>36 + <|a2|>63 =
    step     <|ref|> <|a0|> <|a1|> <|a3|> <|go|> 79*36=2370+474= <|res|> 2844 <|end|>
    step     <|ref|> <|a3|> <|a2|> <|a4|> <|go|> 2844+63= <|res|> 2907 <|end|> <eos>
              header: who is read ... new name      body: sees only what is read, and itself

Markers are ids, never text. `render` lays out whole examples, `tracker` follows what a model writes. No torch here.
Source: "Self-Selected Attention Span", arXiv 2404.09336, section 3.
"""

from dataclasses import dataclass, field

from selfspan_core.spans.intervals import Interval, merge

NUM_ANCHORS = 256
REF, GO, RES, END = "<|ref|>", "<|go|>", "<|res|>", "<|end|>"
ANCHORS = tuple(f"<|a{i}|>" for i in range(NUM_ANCHORS))
MARKER_PIECES = (REF, GO, RES, END, *ANCHORS)


@dataclass(frozen=True)
class Markers:
    """Token ids of the markers in one tokenizer.

    Attributes:
        bos, eos: begin and end of a sequence (bos is None where a tokenizer has none).
        ref, go, res, end: open a step, end its header, open its citable part, end it.
        anchors: ids of `<|a0|>` ... in order.
    """

    bos: int | None
    eos: int
    ref: int
    go: int
    res: int
    end: int
    anchors: tuple[int, ...]
    anchor_index: dict[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchor_index", {token: i for i, token in enumerate(self.anchors)})
        ids = self.ids
        if len(set(ids)) != len(ids):
            raise ValueError("two markers share an id")

    @property
    def ids(self) -> tuple[int, ...]:
        """All marker ids, in the order of MARKER_PIECES (bos and eos are not markers)."""
        return (self.ref, self.go, self.res, self.end, *self.anchors)

    def name(self, offset: int, index: int) -> int:
        """Id of the `index`-th name of an example whose names start at anchor `offset`; names wrap around."""
        return self.anchors[(offset + index) % len(self.anchors)]


@dataclass(frozen=True)
class PromptLayout:
    """Positions of scaffold and segments in a rendered prompt; the starting point of a tracker.

    Attributes:
        num_tokens: length of the prompt.
        scaffold_end: the scaffold is `[0, scaffold_end)`.
        segments: anchor id -> interval, its anchor token included.
        head_tokens: headers see an index: of each segment its name and so many tokens behind it, and all that belongs
            to no segment; None: they see everything.
    """

    num_tokens: int
    scaffold_end: int
    segments: dict[int, Interval]
    head_tokens: int | None = None

    @property
    def index(self) -> tuple[Interval, ...]:
        """What headers see of the prompt."""
        if self.head_tokens is None:
            return ((0, self.num_tokens),)
        seen, behind = [], 0
        for start, end in sorted(self.segments.values()):
            seen.append((behind, min(start + 1 + self.head_tokens, end)))
            behind = end
        return merge([*seen, (behind, self.num_tokens)])
