"""What a reader should know of a summary that no rule keeps out: words that its article does not have."""

from selfspan_core.tasks.summarize.form import Form
from selfspan_core.tasks.summarize.own_words import words_of

MOST_FOREIGN = {"shorten": 0.0, "rewrite": 0.5}
"""Form -> the share of a summary's words that may be none of the article's; more is remarked upon."""
MAX_SHOWN, MAX_SHOWN_CHARACTERS = 4, 24


def remark_on(summary: str, article: str, form: Form) -> str:
    """A sentence about the words of a summary that are not in its article; empty where that is as it should be."""
    words, known = words_of(summary), set(words_of(article))
    foreign = [word for word in words if word not in known]
    if not foreign or len(foreign) <= MOST_FOREIGN[form] * len(words):
        return ""
    are = "is" if len(foreign) == 1 else "are"
    said = f"{len(foreign)} of {len(words)} words ({_percent(len(foreign) / len(words))}) {are} not in the article"
    shown = list(dict.fromkeys(foreign))
    return f"{said}: {', '.join(map(_quoted, shown))}." if len(shown) <= MAX_SHOWN else f"{said}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1f} %"


def _quoted(word: str) -> str:
    return f"“{word if len(word) <= MAX_SHOWN_CHARACTERS else f'{word[: MAX_SHOWN_CHARACTERS - 1]}…'}”"
