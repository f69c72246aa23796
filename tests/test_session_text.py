"""What a session makes of ids and settings: malformed steps, characters in parts, bad settings."""

import pytest

from selfspan_core.compare.lane_view import LaneView
from selfspan_core.compare.lanes import LaneSpec, lane_specs
from selfspan_core.compare.text_stream import TextStream
from selfspan_core.errors import InputError
from selfspan_core.params import Request
from tests.support.asking import compare, prepare
from tests.support.scripted import step
from tests.support.session_tools import TEXT, TOKENIZER, assembled, scripted_session, show

# ---- malformed output


@pytest.mark.parametrize(
    ("ids", "shown", "reads", "name"),
    [
        (step(TOKENIZER, [200], 3, "1+1=", "2"), "[ref][a200][a3][go]1+1=[res]2[end]\n", ["a200"], "a3"),
        (TOKENIZER.encode("hello"), "hello", [], None),
        ([4, 8, 9, *TOKENIZER.encode("no go")], "[ref][a0][a1]no go", [], None),
        ([4, 8, 11, 5, *TOKENIZER.encode("79"), 4, 8, 12, 5], "[ref][a0][a3][go]79[ref][a0][a4][go]", ["a0"], "a3"),
    ],
    ids=["unknown name", "text outside steps", "no go", "marker in a body"],
)
def test_malformed_steps_are_flagged_and_read_everything(ids, shown, reads, name):
    """Would catch malformed output that crashes, is drawn as a normal step, or is said to read less than it did."""
    session, _ = scripted_session(span_ids=[*ids, 2])
    ticks = list(compare(session, "arithmetic", TEXT, tick_seconds=0))
    assert show(assembled(ticks, "sparse")) == shown
    steps = {}
    for tick in ticks[1:-1]:
        steps |= {news["index"]: news for news in tick["lanes"]["sparse"]["steps"]}
    assert steps[0] == {"index": 0, "name": name, "reads": reads, "malformed": True, "closed": True}
    result = ticks[-1]["lanes"]["sparse"]
    assert result["malformed_steps"] >= 1 and result["steps"][0]["intervals"] == [[0, 24]]
    assert "malformed step" in ticks[-1]["line"]


def test_two_broken_steps_stand_on_lines_of_their_own():
    """Would catch a new step being drawn on the line of one that never ended."""
    ids = [4, 8, 11, *TOKENIZER.encode("12"), *step(TOKENIZER, [0], 3, "1=", "1"), 2]
    session, _ = scripted_session(span_ids=ids)
    ticks = list(compare(session, "arithmetic", TEXT))
    items = assembled(ticks, "sparse")
    assert show(items) == "[ref][a0][a3]12\n[ref][a0][a3][go]1=[res]1[end]\n"
    assert [item["step"] for item in items if item["kind"] == "newline"] == [0, 1]


# ---- text


@pytest.mark.parametrize("text", ["é", "€ and 漢字", "😀😀", "a\u0301", "x😀y", "�", "½\n½"])
def test_characters_are_held_back_until_complete(text):
    """Would catch half a character on the screen: byte-fallback tokens are single bytes."""
    ids = TOKENIZER.encode(text)
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_bytes_that_are_no_text_do_not_block_the_rest():
    """Would catch a stray byte that holds everything after it back for ever, or repeats or loses characters."""
    ids = [512 + 0xE2, *TOKENIZER.encode("12"), 512 + 0xFF, 512 + 0xFF, 512 + 0xFF, 512 + 0xFF, *TOKENIZER.encode("3")]
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) == "\ufffd12\ufffd\ufffd\ufffd\ufffd3" and pieces[1] == "\ufffd1"
    assert stream.push(512 + 0xE2) == "" and stream.flush() == "\ufffd" and stream.flush() == ""


def test_held_back_bytes_come_out_before_a_marker_and_at_the_end():
    """Would catch characters that jump over a marker or vanish with the last token."""
    body = [*TOKENIZER.encode("1="), 512 + 0xE2]
    session, _ = scripted_session(span_ids=[4, 8, 11, 5, *body, 6, *TOKENIZER.encode("1"), 512 + 0xE2, 7, 2])
    ticks = list(compare(session, "arithmetic", TEXT, tick_seconds=0))
    assert show(assembled(ticks, "sparse")) == "[ref][a0][a3][go]1=\ufffd[res]1\ufffd[end]\n"


def test_model_text_stays_text():
    """Would catch text that becomes markup, a marker or a template on its way."""
    text = "<b>{{value}}${value}<|ref|></b>"
    view = LaneView(LaneSpec("dense", "", "dense", "plain"), TOKENIZER, 5)
    view._add_text(text)
    assert view.items == [{"text": text, "kind": "text", "step": 0}]


def test_typed_markers_are_refused():
    """Would catch a typed marker reaching the prompt."""
    session, _ = scripted_session()
    with pytest.raises(InputError):
        compare(session, "arithmetic", "<|ref|>")


# ---- bad settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "poetry"}, "poetry"),
        ({"task": None}, "task"),
        ({"text": ""}, "empty"),
        ({"text": ["1+1"]}, "text"),
        ({"adapter": "fancy"}, "span or plain"),
        ({"adapter": ["span"]}, "span or plain"),
        ({"max_new_tokens": 0}, "a whole number, 1 or more, not 0"),
        ({"max_new_tokens": 4097}, "from 1 to 4,096"),
        ({"max_new_tokens": 10**6000}, "far larger"),
        ({"max_new_tokens": -5}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "whole number"),
        ({"max_new_tokens": float("nan")}, "whole number"),
        ({"max_new_tokens": float("inf")}, "whole number"),
        ({"max_new_tokens": "100"}, "whole number"),
        ({"max_new_tokens": True}, "whole number"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": None}, "temperature"),
        ({"top_p": 0}, "top_p is a number above 0 and at most 1, not 0"),
        ({"top_p": 1.01}, "top_p is a number above 0 and at most 1, not 1.01"),
        ({"top_p": float("nan")}, "top_p is a number"),
        ({"top_p": True}, "top_p is a number"),
        ({"top_p": "0.5"}, "top_p is a number"),
        ({"seed": -1}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"load": 0}, "load is a whole number from 1 to 64, not 0"),
        ({"load": 65}, "load is a whole number from 1 to 64"),
        ({"load": 2.5}, "load is a whole number"),
        ({"load": None}, "load is a whole number"),
        ({"load": 2}, "Simultaneous requests need a CUDA GPU.* runs on script, float32: load is 1 here, not 2"),
    ],
)
def test_bad_settings_are_input_errors(settings, message):
    """Would catch a setting that crashes, is silently changed, or fails only after the first tick."""
    session, store = scripted_session()
    with pytest.raises(InputError, match=message):
        compare(session, **{"task": "arithmetic", "text": TEXT, **settings})
    assert not store.engines["span"].calls


def test_whole_floats_are_whole_numbers():
    """Would catch refusing 512.0, which is how some JSON clients write 512."""
    session, _ = scripted_session()
    assert list(compare(session, "arithmetic", TEXT, max_new_tokens=512.0))[-1]["lanes"]["dense"]["correct"]


def test_too_long_prompt():
    """Would catch a prompt that fills the context and crashes the engine instead of telling the user."""
    session, store = scripted_session()
    store.engines["span"].model.max_context = 24
    with pytest.raises(InputError, match="24 tokens; the model's context holds 24"):
        compare(session, "arithmetic", TEXT)


def test_lane_specs():
    """Would catch self-selected attention offered for an adapter that declares no spans."""
    assert [(spec.attention, spec.adapter) for spec in lane_specs("both", "plain")] == [
        ("dense", "plain"),
        ("sparse", "span"),
    ]
    assert [spec.id for spec in lane_specs("sparse", "span")] == ["sparse"]
    with pytest.raises(InputError, match="declares no spans"):
        Request("arithmetic", TEXT, attention="sparse", adapter="plain")
    with pytest.raises(InputError, match="dense, sparse or both"):
        Request("arithmetic", TEXT, attention="half")


def test_single_lane():
    """Would catch a run of one lane that needs the other."""
    session, store = scripted_session()
    run = prepare(session, "arithmetic", TEXT, "dense", "plain", temperature=0.5, top_p=0.8, seed=7)
    start, *_, end = session.stream(run)
    assert start["title"] == "Dense attention, plain adapter" and list(end["lanes"]) == ["dense"]
    assert end["speedup_ms_per_token"] is None and "the answer is right" in end["line"]
    assert store.engines["plain"].calls == [
        {"attention": "dense", "annotated": False, "temperature": 0.5, "top_p": 0.8, "seed": 7},
    ]
