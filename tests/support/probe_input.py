"""Looks for texts that take long to read: `python -m tests.support.probe_input --task summarize --order 2`.

Marks, words and beginnings of formats are repeated, alone and in groups, as one line and as lines of several lengths,
with prose before them, so that no early check ends the work. The slowest are shown with a text four times as long: a
factor far above 4 is work that grows faster than the text.
"""

import argparse
import itertools
import random
import time

from selfspan_core.errors import InputError
from selfspan_core.tasks.base import read_pasted
from selfspan_core.tasks.registry import TASKS, get_task
from selfspan_core.tasks.summarize import text as summarize_text

PROSE = "The man said that it was in the house of the town. " * 6
MARKS = ".,;:!?…'\"‘’“”«»‹›„()[]{}<>|/\\-–—_*~`#&=+@%$^©¹½？。"
UNSEEN = ("\n", "\n\n", "\t", "\r", "\v", "\u00a0", "\u200b", "\u00ad", "\u00ad\n", "\x1b[", "\u0301", "😀", "\ud800")
WORDS = (
    "1",
    "12",
    "a",
    "A",
    "ab ",
    "Ab ",
    "St. A",
    "Ave. A b ",
    "a.m. Mon ",
    "It is. ",
    "By A ",
    "and ",
    "Mr. ",
    "I. ",
)
FORMATS = (
    *("<a ", "</a>", "<!--", "<p>", "<|a|>", "&amp;", "&amp;amp;", "&#38;", "[1] ", "([1] ", "[1, ", "[^1]", "[a](b)"),
    *("![](", "[a][", "[a]: #", "**a", "> ", "- ", "1. ", "(a) ", "• ", "|a", "|-|\n", "---\n", "```\n", "# ", "0:00 "),
    *("00:01 --> 00:02\n", "http://a", "a@", "a-\n", "HOST: ", "Advertisement\n", "Home\n", "do not sell |", "Photo: "),
    *("cookies ", "by clicking ", "share ", "sign up ", "newsletter ", "all rights reserved "),
)
PIECES = tuple(dict.fromkeys((*MARKS, *UNSEEN, *WORDS, *FORMATS)))
WIDTHS = (0, 250, 1500)
"""Characters of a line; 0: all of the text is one, unless its pieces have breaks."""


def repeated(unit: str, size: int, width: int) -> str:
    """A text of so many characters."""
    text = (unit * (size // len(unit) + 1))[:size]
    return "\n".join(text[at : at + width] for at in range(0, size, width)) if width else text


def seconds(task: str, text: str) -> float:
    """Processor seconds to clean a text and read it, and to split it into sentences whatever it is."""
    began = time.process_time()
    try:
        cleaned = get_task(task).clean(text)
        if task == "summarize":
            summarize_text.sentences_of(summarize_text.clean(cleaned.text))
        read_pasted(get_task(task), PROSE + text if task == "summarize" else text, True)
    except InputError:
        pass
    return time.process_time() - began


def main() -> None:
    """Try for as long as asked, and print the slowest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=list(TASKS), default="summarize")
    parser.add_argument("--order", type=int, default=2, help="pieces that are repeated together")
    parser.add_argument("--size", type=int, default=3_000, help="characters")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng, ends, found = random.Random(arguments.seed), time.monotonic() + arguments.seconds, []
    units = ["".join(group) for group in itertools.product(PIECES, repeat=min(arguments.order, 2))]
    rng.shuffle(units)
    for unit in units:
        if arguments.order > 2:
            unit += "".join(rng.choices(PIECES, k=arguments.order - 2))
        for width in WIDTHS:
            text = repeated(unit, arguments.size, width)
            found.append((seconds(arguments.task, text), unit, width))
        if time.monotonic() > ends:
            break
    found.sort(reverse=True)
    print(f"{len(found):,} texts of {arguments.size:,} characters, median {1000 * found[len(found) // 2][0]:.1f} ms")
    for took, unit, width in found[:20]:
        longer = seconds(arguments.task, repeated(unit, 4 * arguments.size, width))
        print(f"{1000 * took:7.1f} ms, four times as long {longer / took:5.1f} x: {unit!r}, lines of {width or 'any'}")


if __name__ == "__main__":
    main()
