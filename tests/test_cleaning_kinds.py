"""Kinds of pasted texts: papers, encyclopedias, captions, transcripts, mail, notes; and what looks like them."""

import textwrap

import pytest

from selfspan_core.errors import InputError
from selfspan_core.serve.text_files import UnknownEncoding, decoded
from selfspan_core.tasks.base import read_pasted
from selfspan_core.tasks.registry import get_task
from selfspan_core.tasks.summarize.cleaning.pipeline import Cleaned, cleaned
from selfspan_core.tasks.summarize.text import clean, sentences_of

PIER = (
    "The harbour of Kolby will close for three weeks in June because the pier is to be rebuilt. About nine hundred "
    "boats use it every year, and most of them come from the islands. The town said that it would pay for a bus."
)


@pytest.mark.parametrize(
    ("pasted", "text", "num_marks"),
    [
        ("It is old.[1][2] It is long [3], too.[4]:17 So it is.", "It is old. It is long, too. So it is.", 4),
        ("It is old [1, p. 3]. It is long [5]-[7]. It is so.[Note 1]", "It is old. It is long. It is so.", 4),
        ("It is old.[original research?] It is long (see [3, 4]) here.", "It is old. It is long here.", 2),
        ("It is old.¹ It covers 40 m² of land. It stays.²,³", "It is old. It covers 40 m² of land. It stays.", 2),
        ("It is old.[^1] It stays.[^b]", "It is old. It stays.", 2),
        ("It is old.[a] The pier[b] stays.", "It is old. The pier stays.", 2),
        ("It is old.[1]: 12 It stays.[2]: 3–4", "It is old. It stays.", 2),
    ],
)
def test_marks_of_sources(pasted, text, num_marks):
    """Would catch parts of a mark that stay in the sentence, and figures of a unit that go with the marks."""
    assert cleaned(pasted) == Cleaned(text, (f"{num_marks} reference marks taken off",))


@pytest.mark.parametrize(
    "text",
    [
        '"[T]his is old," he said. "It is [t]he pier." He wept [sic]. "So it is ’[t]he pier’."',
        "He broke Rule E1[a] of the old service[s]. Nobody cared.",
        "In [8] this is denied. As shown by [9], it is so. See [10].",
        "[1] Holt, A. Piers of the North. Kolby 2011.\n[2] Day, T. Boats. Kolby 2012.",
        '[Ida]: "It is old."\n[Tom]: "So it is."',
    ],
)
def test_brackets_that_are_words_stay(text):
    """Would catch a word without its first letter, a sentence without its object, and speech that goes as a link."""
    assert cleaned(text) == Cleaned(text)


def test_links_notes_and_tables_of_markdown():
    """Would catch addresses and marks that stay where a link's address stands elsewhere, and rows read as prose."""
    found = cleaned(
        'See [the plan][1], [the map][], [his][sic] and [more](<a b.html> "t") at <https://kolby.example/x>.[^n]\n\n'
        "| 2024 | 900 |\n| 2025 | 950 |\n\nNobody knows.\n--\n"
        '[1]: https://kolby.example/plan\n[The map]: /map.png "Map"\n[^n]: Built in 1931.'
    )
    assert found.text == "See the plan, the map, [his][sic] and more at https://kolby.example/x.\n\nNobody knows."
    assert {"1 table left out", "1 note left out", "6 link addresses taken off"} <= {*found.done}


def test_speakers_with_times():
    """Would catch times behind names, and a name that becomes the beginning of what its owner says."""
    said = ["The pier is old and", "Who will pay for it? Nobody knows.", "and nobody will say so, either."]
    names = ["Ida Holt", "tom day", "Ida Holt"]
    lines = [
        f"{name} {form}\n{text}" for name, form, text in zip(names, ("0:12", "[00:34]", "01:02"), said, strict=True)
    ]
    found = cleaned("\n".join(lines))
    assert found.text == "\n".join(f"{name}:\n{text}" for name, text in zip(names, said, strict=True))
    assert found.done == ("3 times taken off",)
    assert cleaned("Kolby won 3:10\nHolm lost 2:11\nSandoy won 1:12").done == ()


def test_times_of_a_programme_stay():
    """Would catch clock times, which are news, taken for those of a transcript."""
    text = "9:00 The doors open.\n9:30 The mayor speaks.\n11:05 It ends."
    assert cleaned(text) == Cleaned(text)
    assert cleaned(text.replace("9:", "0:")).done == ("3 times taken off",)


def test_pages_of_a_document():
    """Would catch a sentence in two because a page ends in it, and numbers of a list or a table taken for pages."""
    words = PIER.split(" ")
    pages = [textwrap.fill(" ".join(part), 50) for part in (words[:20], words[20:31], words[31:])]
    assert pages[1][0].islower() and pages[2][0].islower()
    for form in ("{}", "- {} -", "Page {} of 9"):
        pasted = f"{pages[0]}\n\n{form.format(9)}\n\n{pages[1]}\n{form.format(10)}\n{pages[2]}"
        found = cleaned(pasted)
        assert found.text == PIER and found.done[0] == "2 page numbers taken off"
    for text in ("The pier\n1\nThe boats\n2\nThe bus\n3", "It is old.\n1931\nIt stays.\n1932\nSo it is."):
        assert cleaned(text) == Cleaned(text)


def test_captions_name_their_speaker():
    """Would catch tags of captions in an article."""
    times = [f"00:0{n}.000 --> 00:0{n + 1}.000" for n in range(3)]
    said = ["<v Ida>The pier of the town is old", "and will be rebuilt.", "<v Tom>When?</v>"]
    captions = "\n\n".join(f"{time}\n{text}" for time, text in zip(times, said, strict=True))
    assert cleaned(f"WEBVTT\n\n{captions}").text == "Ida: The pier of the town is old and will be rebuilt.\nTom: When?"


def test_labels_stay_apart():
    """Would catch names in small letters that are joined with what is said above and below them."""
    said = "The pier of the town is so old\ntom day\nand nobody will pay.\nida holt\nThat is\ntom day"
    text = f"[music]\nida holt\n{said}\n[music]"
    assert cleaned(text) == Cleaned(text)


def test_mail_keeps_who_says_what_apart():
    """Would catch an answer that goes on the quoted sentence above it, and a quotation on the line that names it."""
    quoted = textwrap.fill(PIER, 50, initial_indent="> ", subsequent_indent="> ")
    found = cleaned(f"On Monday Ida Holt <ida@kolby.example> wrote:\n{quoted}\n>> Is that sure?\nYes. It is sure.")
    parts = ["On Monday Ida Holt ida@kolby.example wrote:", PIER, "Is that sure?", "Yes. It is sure."]
    assert found.text == "\n\n".join(parts)


def test_a_heading_behind_a_full_line():
    """Would catch a heading that is joined with the paragraph above because its last line is as long as any."""
    first = textwrap.fill(PIER.replace("a bus", "a bus, which is free for all of its people"), 45)
    assert len(first.split("\n")[-1]) > 38
    lines = cleaned(f"{first}\nWhat Comes Next\n{textwrap.fill(PIER, 45)}").text.split("\n")
    assert lines == [" ".join(first.split()), "What Comes Next", PIER]


@pytest.mark.parametrize(
    "text",
    [
        "Professor Ida Holt of the Port\nida@kolby.example\nKolby Hall\nTom Day\ntom@kolby.example\nKolby Hall\n"
        + PIER,
        "It has three aims:\nsafer boats in the harbour of Kolby\nmore room for the boats of the islands\na bus\n"
        + PIER,
        "i) The pier is old and will be rebuilt, and\nii) The bus is free for all of the town, and\niii) It rains.",
        f"Old boats and\nnew ones\nSummer\nHolidays begin\n{PIER}\nSailing and\nrowing\nWinter\nStorage costs\n{PIER}\n"
        f"Fees\n{PIER}",
    ],
)
def test_lines_that_no_width_broke(text):
    """Would catch addresses, lists without marks and headings run together because a few lines look broken."""
    assert cleaned(text).text == text


def test_many_breaks_without_a_width():
    """Would catch a cleaning that joins one line at a time, and gives up."""
    words = ["was", "long", "as", "any", "other", "in", "that", "cold", "north", "land", "once."]
    words.insert(0, "The pier of the town is old and it")
    assert cleaned("\n".join(words)).text == " ".join(words)
    assert (
        cleaned("A mother-in-\nlaw came. It rained all day long.").text
        == "A mother-in-law came. It rained all day long."
    )


def test_hyphens_in_a_row_of_short_lines():
    """Would catch a word in two because its line is short, and figures of a range run together."""
    words = ["The pier is anti-", "war and self-", "made, a mother-in-", "law is 3-", "4 feet from over-", "all of it."]
    found = cleaned("\n".join(words))
    assert found.text == "The pier is anti-war and self-made, a mother-in-law is 3-4 feet from overall of it."
    assert found.done == ("5 line breaks joined", "1 hyphenated word joined")


def test_both_halves_of_a_compound():
    """Would catch a compound that loses its hyphen of two words, and parts that vouch for themselves."""
    text = "Each donor met one recipient there. The donor-\nrecipient pair was glad. The resi-\ndents were glad, too."
    assert cleaned(text).text.endswith("The donor-recipient pair was glad. The residents were glad, too.")


def test_pictures_menus_and_notices():
    """Would catch credits and two-part menus in a summary."""
    first, second, third = sentences_of(PIER)
    page = [
        "Skip to main content", "Subscribe", "Sign in", "We value your privacy", "Got it", "Pier to close",
        "By Ida Holt | March 3, 2026 | Updated 10:15 a.m.", "Published", "3 March 2026",
        "Image source, Getty Images", "Media caption,", first, "Photo: Ida Holt/Reuters", second,
        "Click here to sign up for our alerts",
        third, "Privacy Policy | Terms of Use",
    ]  # fmt: skip
    assert sentences_of(clean(cleaned("\n".join(page)).text)) == ["Pier to close", first, second, third]


@pytest.mark.parametrize(
    "text",
    [
        "Okay.\nGot it\nI agree\nSo it is. It rained.",
        "Accept\nThe pier is old. Nobody wept.",
        "Follow us on Facebook, on\nTwitter and in the paper. So it is.",
        "The feast has four themes:\nMusic\nFilm\nFood\nTheatre\nIt begins on Friday. Nobody pays.",
        "Cut it.\nShare with friends.\nShare this pie with your neighbours.\nServe it.",
        "Register to vote by e-mail, the council said.\nAdvertising\nIt costs less than before. So it is.",
        "Photographs of the pier were shown. Image is all.\nPicture this: it rains. Nobody came.",
    ],
)
def test_talk_and_headings_are_no_furniture(text):
    """Would catch parts of a conversation taken for answers to a notice about cookies."""
    assert cleaned(text) == Cleaned(text)


@pytest.mark.parametrize(
    "sentences",
    [
        ["Doors open at 9 a.m.", "Friday's show is sold out."],
        ["It begins at 9 p.m. New Year's Eve.", "It ends at 1 a.m. Christmas Day."],
        ["It airs at 8 p.m. Eastern/5 p.m. Pacific on Sunday.", "It is short."],
        ["He lives on Main St.", "Nobody goes there.", "It is near 12 Elm St.", "Parking is scarce."],
        ["They sailed on Lake St. Clair all day.", "The mayor of Port St. Lucie said so.", "Visit St. Lucia now."],
    ],
)
def test_ends_behind_times_and_streets(sentences):
    """Would catch a sentence that swallows the next one behind a time or a street, and names of places in two."""
    assert sentences_of(" ".join(sentences)) == sentences


@pytest.mark.parametrize("encoding", ["mac_roman", "cp1250", "cp1251", "gbk"])
def test_other_encodings_are_refused(encoding):
    """Would catch a text with wrong characters that is summarized as if it were right."""
    texts = {
        "cp1251": "Мост закроют в понедельник. ",
        "gbk": "桥将关闭。",
        "cp1250": "Żółć i jaźń: the bridge will close, because it is old. ",
        "mac_roman": "“It’s late,” said Anaïs – the mayor of the town – on Friday. ",
    }
    with pytest.raises(UnknownEncoding, match="neither UTF-8 nor cp1252"):
        decoded(texts[encoding].encode(encoding) * 9)


def test_an_error_says_what_was_cleaned():
    """Would catch a text that is too short only because its menus went, and nobody says so."""
    menus = "Home\nNews\nSport\nWeather\n" * 8
    with pytest.raises(InputError, match=r"has 4 words; .* The text was cleaned before that: 32 menu lines dropped\."):
        read_pasted(get_task("summarize"), f"{menus}The pier is old.", True)
    with pytest.raises(InputError) as caught:
        read_pasted(get_task("summarize"), "The pier is old.", True)
    assert "cleaned" not in str(caught.value)
