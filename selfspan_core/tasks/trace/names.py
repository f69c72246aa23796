"""Words of random programs, and how many ids the shipped tokenizer spends on words that programs have."""

KEYWORDS = {
    **dict.fromkeys(("for", "while", "if", "else", "def", "return", "break", "continue", "pass", "in", "range"), 1),
    **dict.fromkeys(("and", "or", "not", "print", "pop", "abs", "min", "max", "str", "no", "end"), 1),
    **dict.fromkeys(("elif", "len", "True", "False", "append", "yes"), 2),
}
"""Ids of a space and the word, at most."""
LETTERS = tuple("abcdefghijkmnprstvwxyz")
NUMBERS = (
    *("total", "count", "result", "value", "number", "first", "last", "left", "right", "best", "step", "size", "score"),
    *("price", "cost", "sum", "average", "limit", "start", "stop", "low", "high", "mid", "found", "length", "row"),
    *("col", "height", "age", "day", "days", "year", "hours", "rate", "points", "balance", "money", "amount", "stock"),
    *("order", "units", "level", "speed", "time", "next", "prev", "current", "old", "new", "base", "part", "rest"),
    *("half", "double", "top", "bottom", "front", "back", "small", "large", "even", "answer", "target", "goal", "key"),
    *("tax", "gain", "loss", "steps", "power", "extra", "share", "change", "energy", "fuel", "distance", "floor"),
    *("room", "other", "more", "less", "weight", "area", "mix"),
)
LISTS = ("numbers", "values", "items", "orders", "lines", "parts", "data", "prices", "points", "seen", "out")
STRINGS = ("word", "text", "name", "line", "letters", "key", "code", "title", "label", "message", "answer", "s", "t")
FUNCTIONS = ("f", "g", "h", "add", "scale", "bigger", "smaller", "shift", "square", "twice", "area", "mix", "double")
FLAGS = ("found", "done", "flag", "even", "ready", "open")
WORDS = (
    *("abc", "cat", "dog", "tree", "river", "sun", "moon", "red", "blue", "green", "apple", "stone", "lamp", "zebra"),
    *(
        "kite",
        "book",
        "queen",
        "xyz",
        "hello",
        "world",
        "banana",
        "level",
        "noon",
        "go",
        "we",
        "a",
        "b",
        "abba",
        "data",
    ),
)
ONE_ID = frozenset((*LETTERS, *NUMBERS, *FUNCTIONS))
"""Names that are one id with the space before them; a test asks the tokenizer."""
