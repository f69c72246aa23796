"""Shortens sentences by leaving out phrases: a phrase is left out if the reference does not mention it and the rest is
still a sentence.

Words are never changed, moved or added; only a sentence that lost its beginning gets a capital letter. `summary_cuts`
finds the phrases that may be left out. In doubt, nothing is cut.
"""

import itertools
import re
from collections.abc import Sequence

from training.data.summary_cuts import MIN_WORDS, Cut, cuts
from training.data.summary_tokens import DASHES, Token, text_of, tokens_of
from training.data.summary_words import SAYING, content, is_finite

ATTRIBUTIONS = ("attribution", "said")
"""Kinds of phrases that say whose words a sentence reports."""

_TERMINAL = re.compile(r"[.!?…]+[\"'”’)\]]*$")


def shorten(sentence: str, reference: str | None) -> str:
    """A sentence with the phrases left out that a reference says nothing of.

    Args:
        reference: the reference sentence for which it is cited; None: leave out only phrases that are always optional
            (a dateline, a conjunction in front).

    Returns:
        The shortened sentence, or the sentence as it is.
    """
    wanted = None if reference is None else content(reference)
    # Who said it matters if the reference says so, too.
    is_attributed = reference is not None and (":" in reference or any(t.lower in SAYING for t in tokens_of(reference)))
    return _cut_down(sentence, wanted, ATTRIBUTIONS if is_attributed else ())


def shorten_fully(sentence: str) -> str:
    """A sentence without all phrases that it can do without; it still says who said it."""
    return _cut_down(sentence, set(), ATTRIBUTIONS)


def _cut_down(sentence: str, wanted: set[str] | None, kept_kinds: Sequence[str]) -> str:
    tokens = tokens_of(sentence)
    # A cut may make room for another: phrases inside phrases, one leading phrase behind another.
    for _ in range(6):
        shorter = _best_cut(tokens, wanted, kept_kinds)
        if shorter is None:
            break
        tokens = shorter
    return text_of(tokens)


def _best_cut(tokens: list[Token], wanted: set[str] | None, kept_kinds: Sequence[str]) -> list[Token] | None:
    """Tokens without the longest phrase that may go, or None. Phrases of `kept_kinds` stay."""
    # The dateline first: it is no part of the sentence.
    for cut in sorted(cuts(tokens), key=lambda cut: (cut.kind != "dateline", cut.start - cut.end)):
        if cut.kind in kept_kinds or (wanted is None and cut.kind not in ("dateline", "conjunction")):
            continue
        left = _without(tokens, cut)
        if left is not None and (wanted is None or cut.kind == "dateline" or _keeps(tokens, left, cut, wanted)):
            return left
    return None


def _keeps(tokens: list[Token], left: list[Token], cut: Cut, wanted: set[str]) -> bool:
    """Whether the shortened sentence keeps all content that the whole shares with the reference."""
    lost = content(text_of(tokens[cut.start : cut.end])) - content(text_of(left))
    return not lost & wanted


def _without(tokens: list[Token], cut: Cut) -> list[Token] | None:
    """The tokens without a phrase; None if the rest is no longer a sentence."""
    left = tokens[: cut.start] + tokens[cut.end :]
    while left and (left[0].text in ",;:" or left[0].text in DASHES):
        left = left[1:]
    num_words = sum(token.is_word for token in left)
    if num_words < MIN_WORDS or not left[-1].text.startswith(tuple(".!?…\"”’')")):
        return None
    if not _TERMINAL.search(text_of(left)) or not _is_balanced(left):
        return None
    if not any(is_finite(token.lower) for token in left) and any(is_finite(token.lower) for token in tokens):
        return None
    for token, following in itertools.pairwise(left):
        if token.text.endswith(".") and following.text[0] == ".":  # "in the U.S." before another full stop
            return None
        if token.text in (*",;:", *DASHES) and (following.text in ",;:" or following.text[0] in ".!?"):
            return None
    return left


def _is_balanced(tokens: Sequence[Token]) -> bool:
    text = " ".join(token.text for token in tokens)
    pairs = (("(", ")"), ("[", "]"), ("“", "”"))
    return text.count('"') % 2 == 0 and all(text.count(a) == text.count(b) for a, b in pairs)
