"""From a text as people paste it to the text of an article: each kind of mark, and what is left alone."""

import importlib
import re
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.tasks.summarize.cleaning import (
    characters,
    furniture,
    joining,
    markup,
    pages,
    pipeline,
    references,
    transcripts,
)
from selfspan_core.tasks.summarize.cleaning.pipeline import MAX_PASSES, MAX_TYPED_CHARACTERS, WORDS, cleaned
from selfspan_core.tasks.summarize.examples import EXAMPLES
from selfspan_core.tasks.summarize.text import clean, sentences_of
from tests.support.slow import examples

FERRY = (
    "The ferry to North Sandoy will stop for two weeks in May because its engine has to be replaced. "
    "Passengers from Holm can take a smaller boat, which leaves at noon and has no room for cars. "
    "The owner, Jon Aasen, said that the repairs would cost about 3 million crowns."
)


def sentences(text: str) -> list[str]:
    return sentences_of(clean(cleaned(text).text))


UNWRAPPED = sentences(FERRY)


@pytest.mark.parametrize("text", EXAMPLES, ids=("heating", "ferry", "library"))
def test_a_clean_article_stays_as_it_is(text):
    """Would catch a step that takes parts of prose for something else."""
    assert cleaned(text).text == text and cleaned(text).done == ()


@pytest.mark.parametrize("width", [20, 32, 45, 60, 72, 100, 130])
@pytest.mark.parametrize("prefix", ["", "> ", "> > "])
def test_broken_lines_are_joined_at_any_width(width, prefix):
    """Would catch breaks before capitals that stay, paragraphs run together, and a width built in."""
    wrapped = "\n\n".join(textwrap.fill(part, width, break_on_hyphens=False) for part in EXAMPLES[1].split("\n"))
    lines = [f"{prefix}{line}".rstrip() for line in wrapped.split("\n")]
    found = cleaned("\n".join(lines))
    assert found.text == EXAMPLES[1].replace("\n", "\n\n")
    assert f"{sum(map(bool, wrapped.splitlines())) - 6} line breaks joined" in found.done


def test_items_and_speakers_keep_their_lines():
    """Would catch a list or a dialogue that becomes one paragraph because its lines are broken, too."""
    lines = [
        "1. Wash the rice well in cold water, and\ndo so twice.\n"
        "2. Boil it for ten minutes with the\nlid on.\n3. Serve.",
        "HOST: Welcome back to the show. Today we\ntalk about a ferry.\nGUEST: Thank you. It is good to be here.\n"
        "HOST: Why was it stopped?\nGUEST: Engineers found cracks in two of the\nbeams.",
    ]
    assert [len(cleaned(text).text.split("\n")) for text in lines] == [3, 4]


def test_headings_stay_apart_from_broken_lines():
    """Would catch a heading that becomes the beginning of a sentence."""
    wrapped = textwrap.fill(FERRY, 60)
    found = cleaned(f"No Ferry in May\n{wrapped}\nWhat Comes Next\n{wrapped}").text.split("\n")
    assert found == ["No Ferry in May", FERRY, "What Comes Next", FERRY]


@pytest.mark.parametrize(
    ("lines", "joined"),
    [
        ("resi-\ndents", "residents"),
        ("alterna-\ntive", "alternative"),
        ("inter-\nesting", "interesting"),
        ("unlike-\nly", "unlikely"),
        ("coal-\nfired", "coal-fired"),
        ("well-\nknown", "well-known"),
        ("state-of-the-\nart", "state-of-the-art"),
        ("Anglo-\nsaxon", "Anglosaxon"),
        ("31-\nyear-old", "31-year-old"),
        ("two-\nand three-day", "two- and three-day"),
        ("e-\nmail", "e-mail"),
        ("resi\u00ad\ndents", "residents"),
    ],
)
def test_hyphens_at_the_end_of_a_line(lines, joined):
    """Would catch a word with a hyphen in it, a compound without one, and a soft hyphen that leaves a break."""
    text = f"The council said on Monday that the {lines} would be there. It rained all day."
    assert cleaned(text).text == f"The council said on Monday that the {joined} would be there. It rained all day."


def test_the_text_itself_decides_about_a_hyphen():
    """Would catch a compound that loses its hyphen although the text has it elsewhere."""
    text = "The sun-lit room was empty that day. Nobody went into the sun-\nlit room or out of it."
    assert cleaned(text).text.count("sun-lit") == 2


def test_markdown_and_entities_are_text():
    """Would catch marks in sentences, a table read as prose, and list marks that are sentences."""
    text = (
        "# No ferry\n\n**SANDOY** — The ***old*** ferry &amp; its crew stay in [Holm](https://a.org/a_(b)) now.\n\n"
        "- It needs an `engine`.\n- Nobody knows who pays.\n\n> It&#39;s &quot;late&quot;.\n\n"
        "| Year | Trips |\n| --- | ---: |\n| 2024 | 900 |\n\n***\n\n![a map](map.png)\n\n"
        "1.\nThe first.\n2. The second.\n"
        "```\ncode = 1\n```\nThe end."
    )
    found = cleaned(text)
    assert sentences(text) == [
        "No ferry",
        "SANDOY — The old ferry & its crew stay in Holm now.",
        "It needs an engine.",
        "Nobody knows who pays.",
        'It\'s "late".',
        "1. The first.",
        "2. The second.",
        "The end.",
    ]
    assert {"1 table left out", "2 list bullets taken off", "4 HTML entities read", "1 quoted line opened"} <= {
        *found.done
    }


@pytest.mark.parametrize(
    "text",
    [
        "He said 5 * 3 * 2 is 30, and file_name_one is a name. A # is a hash; a|b is a choice. AT&T; grew by 3 > 2.",
        'She said "Ni****, ni****" twice. They "blow[n] it" and pay for service[s]. He was [sic] there [laughs].',
        "Ingredients:\n- flour\n- salt\n- two eggs\n\nMix all of it in a bowl. Bake it.",
        "Sport is good for children. Share it with others, said Save the Children on Monday.",
        "Sport\nThe match was lost. Nobody wept.\nSave\nMoney is short. So is time.",
        "The cookies were good. We use cookies and milk for this cake, which is old. Bake it.",
        "At 00:30 it rained.\n01:20 was the time of the storm. It ended.",
        "By the time he left it was dark.\nBy Monday all was well.\nCopyright law is old.",
        "salt\npepper\nthyme",
    ],
)
def test_what_only_looks_like_a_mark_stays(text):
    """Would catch words of an article taken off, and lists run together."""
    assert cleaned(text) == pipeline.Cleaned(text)


def test_reference_marks_go():
    """Would catch a sentence that begins with a mark, and a list of sources without its numbers."""
    text = "The Marl is a river.[1] It is long.[2][3] It floods [4, 5] in May.[citation needed] It ends.[a]\n[1] Books."
    found = cleaned(text)
    assert found.text == "The Marl is a river. It is long. It floods in May. It ends.\n[1] Books."
    assert found.done == ("6 reference marks taken off",)


def test_times_of_transcripts_go():
    """Would catch times in sentences, captions that are not joined, and clock times of a plain text taken off."""
    lines = ["Welcome to the show.", "Today it rains.", "Nobody came."]
    for form in ("0{}:15 ", "[00:0{}:15] ", "0{}:15\n", "(0{}:15) - "):
        assert cleaned("\n".join(form.format(n) + line for n, line in enumerate(lines))).text == "\n".join(lines)
    captions = "WEBVTT\n\n" + "\n\n".join(
        f"{n}\n00:00:0{n},000 --> 00:00:0{n + 1},000\n{part}"
        for n, part in enumerate(
            ("the ferry to the island will", "stop for two weeks because its", "engine is old.", "So it is.")
        )
    )
    assert (
        cleaned(captions).text
        == "the ferry to the island will stop for two weeks because its engine is old.\nSo it is."
    )


def test_furniture_of_a_page_goes():
    """Would catch menus, notices and bylines in a summary, or a headline that goes with them."""
    first, second, third = UNWRAPPED
    page = [
        "Reject all cookies", "This website uses cookies to know you better.", "Cookie settings", "Home", "Weather",
        "Business", "No ferry in May", "By Ida Brandt, Reporter", "Updated: 3 May 2026, 10:15 am", "Share", "Print",
        first,
        "Advertisement", second, "Read more: A tunnel at last?", third, "More on this story", "Related topics",
        "Islands",
        "Subscribe to our newsletter and get news in your inbox.", "© 2026 The Sandoy Post. All rights reserved.",
    ]  # fmt: skip
    found = cleaned("\n".join(page))
    assert sentences("\n".join(page)) == ["No ferry in May", first, second, third]
    assert "3 menu lines dropped" in found.done and "3 cookie lines dropped" in found.done
    assert cleaned("Home | News | Sport | Weather\n" + FERRY).text == FERRY


def test_control_characters_go():
    """Would catch colours of a terminal in an article."""
    found = cleaned("\x1b[31mIt rained.\x1b[0m\x07 Nobody\x00 came.")
    assert found.text == "It rained. Nobody came." and found.done == ("4 control characters dropped",)


PIECES = st.sampled_from(
    [
        "a",
        "the ferry",
        "Sandoy",
        "rained.",
        "It",
        "-",
        "- ",
        ">",
        "> >",
        "#",
        "##",
        "**",
        "*",
        "_",
        "`",
        "```",
        "[1]",
        "[a](b)",
        "![",
        "](",
        "[edit]",
        "1.",
        "2)",
        "•",
        "&amp;",
        "&amp;amp;",
        "&lt;",
        "&#91;",
        "00:15",
        "1:02",
        "By Jon Aasen",
        "Home",
        "News",
        "Sport",
        "Share",
        "Save",
        "Read more",
        "Related topics",
        "© 2026 A",
        "Cookie settings",
        "---",
        "",
        " a ",
        " b ",
        "",
        "",
        "---",
        "---",
        "resi-",
        "dents",
        "a.m.",
        "Friday",
        "\xad",
        "\x1b[0m",
        "\x00",
        "2026",
        "Published 3 May",
        "WEBVTT",
    ]
)
PASTED = st.text(max_size=80) | st.lists(st.tuples(PIECES, st.sampled_from(["", " ", "\n", "\n\n"]))).map(
    lambda drawn: "".join(piece + space for piece, space in drawn)
)


@settings(max_examples=examples(400, 5000), deadline=None)
@given(PASTED)
def test_a_cleaned_text_is_a_fixed_point(text):
    """Would catch a second cleaning that goes on where the first one stopped, and one that invents text."""
    once = cleaned(text)
    assert cleaned(once.text) == pipeline.Cleaned(once.text)
    assert len(once.text) <= len(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def test_a_text_that_never_settles_is_left_alone():
    """Would catch a text that is decoded as often as its author wants."""
    text = f"It rained. &{'amp;' * (MAX_PASSES + 3)}lt; Nobody came."
    assert cleaned(text) == pipeline.Cleaned(text)
    assert cleaned("Home\nNews\nSport") == pipeline.Cleaned("Home\nNews\nSport")


def test_a_text_that_is_too_long_is_not_cleaned():
    """Would catch work on a text before its length is known."""
    text = "a&amp;\n" * (MAX_TYPED_CHARACTERS // 7 + 1)
    assert cleaned(text).text is text


def steps_of(text: str) -> int:
    """Lines of the cleaning's own code that run."""
    files = {sys.modules[f"{pipeline.__package__}.{name}"].__file__ for name in MODULES}
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        cleaned(text)
    finally:
        sys.settrace(before)
    return count


MODULES = ("characters", "furniture", "joining", "markup", "pages", "pipeline", "references", "transcripts")


@pytest.mark.parametrize(
    "piece",
    [
        "a\n",
        "> a\n",
        "a |\n",
        "|-|\n",
        "Home\n",
        "Related topics\n",
        "1.\n",
        "resi-\na",
        "0:01\n",
        "- a\n\n",
        "&amp;",
        "a\n\n1\n\n",
        "see [1] it[2]",
        "By A | B\n",
        "Anna 0:01\n",
        "anna\nis\n",
        "a:\nis\n",
    ],
)
def test_work_grows_with_the_length(piece):
    """Would catch a loop over all lines for each line."""
    assert steps_of(piece * 800) < 2.2 * steps_of(piece * 400) + 500


def repeats(parsed, inside: int = 1):
    """(most tries from one place, of a repeat with those around it) for every repeat of a parsed pattern."""
    for code, value in parsed:
        if str(code) in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            yield inside * value[1]
            yield from repeats(value[2], inside * value[1])
        elif isinstance(value, tuple | list):
            for part in value:
                if isinstance(part, re._parser.SubPattern):
                    yield from repeats(part, inside)
                elif isinstance(part, list):
                    for branch in part:
                        yield from repeats(branch, inside) if isinstance(branch, re._parser.SubPattern) else ()


def test_no_pattern_repeats_without_a_bound():
    """Would catch a pattern that searches the rest of the text from each place; a run of spaces is one match."""
    parser = importlib.import_module("re._parser")
    checked = 0
    for module in (characters, furniture, joining, markup, pages, references, transcripts):
        patterns = [value for value in vars(module).values() if isinstance(value, re.Pattern)]
        patterns += [
            one
            for value in vars(module).values()
            if isinstance(value, tuple)
            for one in value
            if isinstance(one, re.Pattern)
        ]
        for pattern in patterns:
            if pattern.pattern != r"[^\S\n]+":
                assert max(repeats(parser.parse(pattern.pattern)), default=0) <= 100_000, pattern.pattern
                checked += 1
    assert checked > 30


def test_every_kind_of_work_is_told():
    """Would catch something done to a text that its author never hears of."""
    sources = "".join(
        Path(module.__file__).read_text(encoding="utf-8")
        for module in (furniture, joining, markup, pages, references, transcripts)
    )
    counted = set(re.findall(r'tally\["(\w+)"\]', sources))
    assert counted | set(furniture._KINDS) | {"menus", "bylines"} == {*WORDS} - {"controls"}
