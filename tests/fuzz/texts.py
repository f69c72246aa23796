"""Texts that hurt parsers: repeated punctuation, broken markup, strange Unicode, mixed and spliced with real ones."""

from hypothesis import strategies as st

from selfspan_core.tasks.registry import TASKS

MOST_CHARACTERS = 20_000

PUNCTUATION = list("\"'`.,;:!?()[]{}<>/\\|*_~#=+-–—…•·§$%&@^°“”‘’«»„‚")
SPACES = [" ", "  ", "\t", "\n", "\n\n", "\r\n", "\r", "\v", "\f", "\u00a0", "\u2009", "\u3000", "\u2028", "\u200b"]
UNICODE = [
    *("\x00", "\x1b[31m", "\x7f", "\u0301", "\u202e", "\ufeff", "\ufffd", "\ud800", "\udfff", "\U0010ffff"),
    *("é", "ß", "İ", "ﬁ", "Ω", "中文", "あ", "한", "٣", "²", "½", "Ⅷ", "𝟗", "👩‍👩‍👧", "🇩🇪", "न्"),
]
MARKUP = [
    *("<b>", "</b>", "<script>alert(1)</script>", "<!--", "-->", "&amp;", "&#x41;", "&#1114112;", "&nbsp", "[a](b)"),
    *("![x](y)", "**", "__", "```", "# ", "> ", ">> ", "- ", "* ", "1. ", "| a | b |", "|---|", "[1]", "[[", "]]"),
    *("{{x}}", "${x}", "%s", "{0}", "../../etc/passwd", "file:///", "javascript:", "\\u0041", "<ref>", "<a3>", "<end>"),
]
WORDS = [
    *("He", "said", "Mr.", "U.S.", "p.m.", "Inc.", "No.", "St.", "e.g.", "a.m", "Ph.D.", "J. K.", "10.5", "1,000"),
    *("It is.", "Well?", "So!", "resi-\n", "https://a.b/c?d=e.", "x@y.z", "Read more", "Share", "By A. B.", "00:12:03"),
    *("Advertisement", "Cookie", "Subscribe", "Photo:", "(AP)", "LONDON —", "...", ". . .", "word", "a" * 60),
]
ARITHMETIC = [
    *"0123456789+-*/×÷−()= ",
    "12",
    "999999999999999999999",
    "0x1",
    "1e9",
    "1.5",
    "--",
    "**",
    "//",
    "1_0",
    "٣",
]

CODE = [
    *("x = 1\n", "    ", "\n", "if x > 1:\n", "while True:\n", "for i in range(3):\n", "def f(n):\n", "return n\n"),
    *("x += 1\n", "xs = [1, 2]\n", "xs.append(x)\n", "print(x)\n", "x = f(x)\n", "else:\n", "elif x:\n", "break\n"),
    *("x[0]", "'ab'", "not ", " and ", " in ", "lambda: 0", "import os\n", "x * x", "// 0", "[:]", "f'{x}'", "**", "@"),
]

EXAMPLES = [example for task in TASKS.values() for example in task().examples]


def _repeated(pieces: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """A short pattern, many times: what makes a search go back and forth."""
    pattern = st.lists(pieces, min_size=1, max_size=3).map("".join)
    counts = st.sampled_from([1, 2, 3, 7, 50, 400, 3000])
    return st.tuples(pattern, counts).map(lambda made: (made[0] * made[1])[:MOST_CHARACTERS])


def _spliced(pieces: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """A real input with something put in, or cut off, somewhere."""

    def splice(made: tuple[str, str, float, float]) -> str:
        text, piece, begin, end = made
        at, to = sorted((int(begin * len(text)), int(end * len(text))))
        return text[:at] + piece + text[to if to - at < 200 else at :]

    share = st.floats(0, 1)
    return st.tuples(st.sampled_from(EXAMPLES), _repeated(pieces), share, share).map(splice)


def _texts(pieces: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    joined = st.lists(_repeated(pieces) | pieces, max_size=12).map("".join)
    anything = st.text(max_size=200)
    made = st.one_of(joined, joined, _spliced(pieces), _repeated(pieces), anything)
    return made.map(lambda text: text[:MOST_CHARACTERS])


PIECES = st.sampled_from([*PUNCTUATION, *SPACES, *UNICODE, *MARKUP, *WORDS])
ARTICLES = _texts(PIECES)
"""What may be pasted as an article."""
EXPRESSIONS = _texts(st.sampled_from([*ARITHMETIC, *ARITHMETIC, *UNICODE, *SPACES, "x", "abc", "<b>"]))
"""What may be typed as arithmetic."""

PROGRAMS = _texts(st.sampled_from([*CODE, *CODE, *CODE, *PUNCTUATION, *SPACES, *UNICODE]))
"""What may be pasted as a program."""

ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 64, 4096, 10**6, 2**63, -(2**63), 10**400]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(st.characters(), max_size=20),  # halves of pairs of surrogates among them
    st.sampled_from(["", "auto", "off", "span", "plain", "short", "medium", "arithmetic", "summarize", "1+1"]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(st.characters(), max_size=3), st.integers(), max_size=2),
)
"""Arguments of every type and range."""
