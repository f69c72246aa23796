"""The session: engine events become ticks, results and one honest line. Scripted lanes first, then tiny real models."""

import json
from dataclasses import replace

import pytest
import torch

from selfspan_core.attention import backends as impls
from selfspan_core.compare.lane_view import LaneView, TextStream
from selfspan_core.compare.lanes import LaneSpec, lane_specs
from selfspan_core.compare.session import Session
from selfspan_core.compare.verdict import Compared, compare_line, percent, round_speed, speed_phrase
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.model_store import ModelStore
from selfspan_core.errors import ImplUnavailable, InputError, LaneError
from selfspan_core.params import Request
from selfspan_core.tasks.base import View
from selfspan_core.tasks.registry import get_task
from tests.support.asking import compare, generate, prepare
from tests.support.scripted import (
    OTHER_PREFILL_S,
    CharacterTokenizer,
    FakeClock,
    ScriptedEngine,
    ScriptedStore,
    right_output,
    step,
)
from tests.support.tiny_models import save_tiny

TASK = get_task("arithmetic")
TOKENIZER = CharacterTokenizer()
TEXT = "79*36+63"
RESULT_FIELDS = [
    *("input", "attention", "adapter", "output", "answer", "expected", "correct", "tokens", "seconds"),
    *("tokens_per_second", "attended_tokens", "dense_tokens", "malformed_steps", "steps"),
]
LANE_FIELDS = {
    *("from", "items", "tokens", "tokens_per_second", "ms_per_token", "first_token_ms", "elapsed_s"),
    *("attended_tokens", "dense_tokens", "share", "reading", "phase", "steps", "done", "finish"),
}


def scripted_session(
    span_ids=None, plain_ids=None, step_ms=None, text=TEXT, clock=None, tokenizer=TOKENIZER, can_load=False
):
    problem = TASK.parse(text)
    step_ms = step_ms or {"dense": 2.0, "sparse": 1.0}
    span = ScriptedEngine(tokenizer, span_ids or right_output(tokenizer, problem), step_ms)
    plain = ScriptedEngine(tokenizer, plain_ids or right_output(tokenizer, problem, annotated=False), step_ms)
    store = ScriptedStore(tokenizer, {"span": span, "plain": plain}, can_load)
    return Session(store, clock or FakeClock(0.01)), store


def assembled(ticks, lane):
    """All items of a lane, put together from the deltas; fails on a gap or an overlap."""
    items = []
    for tick in ticks:
        if tick["kind"] == "tick":
            news = tick["lanes"][lane]
            assert news["from"] == len(items), "a delta does not start where the last one ended"
            items += news["items"]
    return items


def show(items):
    return "".join(item["text"] if item["kind"] in ("text", "newline") else f"[{item['text']}]" for item in items)


def last_lane(ticks, lane):
    return [tick["lanes"][lane] for tick in ticks if tick["kind"] == "tick"][-1]


# ---- schema


def test_start_tick_end():
    """Would catch a drift of the schema that the app and the API rely on."""
    session, _ = scripted_session()
    ticks = list(compare(session, "arithmetic", " 79 × 36 + 63 "))
    start, *middle, end = ticks
    assert [tick["kind"] for tick in ticks] == ["start", *["tick"] * len(middle), "end"]
    assert start == {
        "kind": "start",
        "view": {"pane": "line", "answer": "answer", "step": "step", "typeset": True},
        "task": "arithmetic",
        "input": "79*36+63",
        "adapter": "span",
        "title": "Same adapter, mask off and on",
        "prompt": [
            {"text": "79", "name": "a0"},
            {"text": "*", "name": None},
            {"text": "36", "name": "a1"},
            {"text": "+", "name": None},
            {"text": "63", "name": "a2"},
            {"text": "=", "name": None},
        ],
        "lanes": [
            {"id": "dense", "label": "Dense attention, span adapter", "attention": "dense", "adapter": "span"},
            {
                "id": "sparse",
                "label": "Self-selected attention, span adapter",
                "attention": "sparse",
                "adapter": "span",
            },
        ],
        "expected": "2907",
        "device": "script, float32",
    }
    for tick in middle:
        assert set(tick) == {"kind", "lanes"} and list(tick["lanes"]) == ["dense", "sparse"]
        assert all(set(lane) == LANE_FIELDS for lane in tick["lanes"].values())
    assert set(end) == {
        *("kind", "input", "expected", "lanes", "line"),
        *("speedup_ms_per_token", "speedup_time_to_answer", "read_share"),
    }
    assert [list(result) for result in end["lanes"].values()] == [RESULT_FIELDS, RESULT_FIELDS]
    assert json.loads(json.dumps(ticks)) == ticks


def test_text_and_steps():
    """Would catch raw markers in the text, a step without its line end, or lanes that show different things."""
    session, _ = scripted_session()
    ticks = list(compare(session, "arithmetic", TEXT))
    shown = "[ref][a0][a1][a3][go]79*36=2370+474=[res]2844[end]\n[ref][a3][a2][a4][go]2844+63=[res]2907[end]\n"
    for lane in ("dense", "sparse"):
        items = assembled(ticks, lane)
        assert show(items) == shown
        assert [item["step"] for item in items if item["kind"] == "newline"] == [0, 1]
        assert {item["kind"] for item in items} == {"text", "newline", "ref", "anchor", "go", "res", "end"}
    result = ticks[-1]["lanes"]["sparse"]
    assert result["output"] == "79*36=2370+474=2844\n2844+63=2907"
    assert (result["answer"], result["correct"], result["malformed_steps"]) == ("2907", True, 0)
    # scaffold "<bos>Calculate: " is 12 tokens; then [a0]79 at 12, * at 15, [a1]36 at 16, + at 19, [a2]63 at 20, =
    assert result["steps"][0] == {
        "reads": ["a0", "a1"],
        "name": "a3",
        "text": "79*36=2370+474=2844",
        "intervals": [[0, 15], [16, 19]],
    }
    assert [step["name"] for step in result["steps"]] == ["a3", "a4"]
    # The dense lane declares the same reads and really attends to everything before the step.
    assert ticks[-1]["lanes"]["dense"]["steps"][0]["intervals"] == [[0, 24]]


def test_plain_lane():
    """Would catch the plain lane being drawn with an empty first line, or its steps being lost."""
    session, store = scripted_session()
    ticks = list(compare(session, "arithmetic", TEXT, adapter="plain"))
    assert ticks[0]["title"] == "Plain adapter, dense, against span adapter, self-selected"
    assert [(lane["attention"], lane["adapter"]) for lane in ticks[0]["lanes"]] == [
        ("dense", "plain"),
        ("sparse", "span"),
    ]
    items = assembled(ticks, "dense")
    assert show(items) == "79*36=2370+474=2844\n2844+63=2907"
    assert [item["step"] for item in items if item["kind"] == "newline"] == [0]
    assert last_lane(ticks, "dense")["steps"] == []
    result = ticks[-1]["lanes"]["dense"]
    assert result["adapter"] == "plain" and result["correct"]
    assert [(step["name"], step["reads"], step["text"]) for step in result["steps"]] == [
        (None, [], "79*36=2370+474=2844"),
        (None, [], "2844+63=2907"),
    ]
    assert store.engines["plain"].calls[0]["annotated"] is False
    assert store.engines["span"].calls[0]["annotated"] is True


def test_reading_names():
    """Would catch highlights that are late, stay on between steps, or appear in a lane that reads everything."""
    session, _ = scripted_session(clock=FakeClock(1.0))
    seen = {"dense": [], "sparse": []}
    for tick in compare(session, "arithmetic", TEXT):
        for lane, news in tick.get("lanes", {}).items() if tick["kind"] == "tick" else ():
            entry = (news["phase"], news["reading"])
            if not seen[lane] or seen[lane][-1] != entry:
                seen[lane].append(entry)
    assert all(reading == [] for _, reading in seen["dense"])
    between, done = ("between", []), ("done", [])
    phases = [entry for entry in seen["sparse"] if entry[0] not in ("prefill",)]
    assert ("header", "all") in phases and ("body", ["a0", "a1"]) in phases and ("body", ["a3", "a2"]) in phases
    assert between in phases and phases[-1] == done
    assert all(reading in (["a0", "a1"], ["a3", "a2"]) for phase, reading in phases if phase == "body")


# ---- pacing


def test_ticks_are_paced_and_nothing_is_dropped():
    """Would catch one tick per token, or tokens that fall between two ticks."""
    session, _ = scripted_session(clock=FakeClock(0.004))
    every = list(compare(session, "arithmetic", TEXT, tick_seconds=0))
    few = list(compare(session, "arithmetic", TEXT, tick_seconds=0.1))
    rare = list(compare(session, "arithmetic", TEXT, tick_seconds=1e9))
    assert len(every) > 100 and 4 <= len(few) < len(every) / 10 and len(rare) == 3
    for lane in ("dense", "sparse"):
        assert show(assembled(every, lane)) == show(assembled(few, lane)) == show(assembled(rare, lane))
        assert every[-1]["lanes"][lane] == few[-1]["lanes"][lane] == rare[-1]["lanes"][lane]


def test_slow_consumer_does_not_get_a_tick_per_token():
    """Would catch pacing that counts the consumer's own time: a slow browser would then halt the lanes."""
    clock = FakeClock(0.001)
    session, _ = scripted_session(clock=clock)
    count = 0
    for _ in compare(session, "arithmetic", TEXT, tick_seconds=0.05):
        clock.now += 10
        count += 1
    assert count < 20


def test_figures():
    """Would catch prefill leaking into ms/token, or a token counted as a reader before it was fed."""
    session, _ = scripted_session(step_ms={"dense": 2.0, "sparse": 1.0})
    ticks = list(compare(session, "arithmetic", TEXT, tick_seconds=0))
    for lane, pace in (("dense", 2.0), ("sparse", 1.0)):
        last, result = last_lane(ticks, lane), ticks[-1]["lanes"][lane]
        count = last["tokens"]
        assert last["ms_per_token"] == pytest.approx(pace) and last["tokens_per_second"] == pytest.approx(1000 / pace)
        assert last["first_token_ms"] == pytest.approx(21.0)
        assert last["elapsed_s"] == pytest.approx(0.021 + (count - 1) * pace / 1000) == result["seconds"]
        assert (last["done"], last["finish"], last["phase"]) == (True, "eos", "done")
        prompt = 12 + 11 + 1
        assert last["dense_tokens"] == sum(range(prompt + 1, prompt + count))
        assert last["share"] == last["attended_tokens"] / last["dense_tokens"]
    assert last_lane(ticks, "dense")["share"] == 1.0 and last_lane(ticks, "sparse")["share"] < 1.0
    assert ticks[-1]["speedup_ms_per_token"] == pytest.approx(2.0)
    # Figures of running ticks lead up to the final ones without a jump: one query is added per token.
    sums = [tick["lanes"]["sparse"]["dense_tokens"] for tick in ticks if tick["kind"] == "tick"]
    assert sums == sorted(sums) and sums[-1] == sums[-2]


def test_every_lane_is_warmed_up_before_the_race():
    """Would catch a race whose first lane pays for what the second finds done, or a warm-up in a lane's clock."""
    session, store = scripted_session()
    ticks = compare(session, "arithmetic", TEXT, tick_seconds=0)
    next(ticks)  # the start
    first = next(ticks)
    calls = [kwargs["attention"] for kwargs in store.engines["span"].calls]
    assert sorted(calls[:2]) == sorted(calls[2:4]) == ["dense", "sparse"]
    assert min(lane["tokens"] for lane in first["lanes"].values()) == 0
    assert sum(lane["elapsed_s"] > 0 for lane in first["lanes"].values()) <= 1


# ---- endings


def test_closing_frees_both_lanes():
    """Would catch Stop leaving a lane's cache behind."""
    session, store = scripted_session()
    ticks = compare(session, "arithmetic", TEXT, tick_seconds=0)
    for _ in range(9):
        next(ticks)
    before = store.engines["span"].num_closed  # of the warm-up, which has its own runs
    ticks.close()
    assert (before, store.engines["span"].num_closed) == (2, 4)
    assert list(compare(session, "arithmetic", TEXT))[-1]["lanes"]["sparse"]["correct"]


def test_cut_off_output_has_no_answer():
    """Would catch a lucky half of a step being called the answer."""
    session, _ = scripted_session()
    problem = TASK.parse(TEXT)
    whole = right_output(TOKENIZER, problem)
    ticks = list(compare(session, "arithmetic", TEXT, max_new_tokens=len(whole) - 1))
    end = ticks[-1]
    assert last_lane(ticks, "sparse")["finish"] == "length"
    assert end["lanes"]["sparse"]["output"].endswith("2844+63=2907")
    assert end["lanes"]["sparse"]["answer"] is None and end["lanes"]["sparse"]["correct"] is False
    assert end["speedup_time_to_answer"] is None
    assert "to the answer" not in end["line"] and "missing (expected 2907)" in end["line"]


def test_one_token():
    """Would catch a division by zero where there is no decoding to be timed."""
    session, _ = scripted_session()
    *_, tick, end = compare(session, "arithmetic", TEXT, max_new_tokens=1)
    assert tick["lanes"]["sparse"]["tokens"] == 1 and tick["lanes"]["sparse"]["ms_per_token"] == 0.0
    assert tick["lanes"]["sparse"]["share"] == 1.0
    assert end["speedup_ms_per_token"] is None and end["line"].startswith("Too few tokens")


def test_failing_lane_is_named():
    """Would catch an error that hides which lane failed."""
    session, store = scripted_session()
    original = store.engines["span"].generate

    def broken():
        raise MemoryError("no room")
        yield

    def generate(request, attention, *rest):
        return broken() if attention == "sparse" else original(request, attention, *rest)

    store.engines["span"].generate = generate
    with pytest.raises(LaneError, match="sparse lane failed: no room"):
        list(compare(session, "arithmetic", TEXT))
    assert store.engines["span"].num_closed == 1


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


# ---- load


def test_load_figures():
    """Would catch a sum over rows by anything but the steps' time, rows left out, or prefills in nobody's clock."""
    session, _ = scripted_session(step_ms={"dense": 2.0, "sparse": 1.6}, can_load=True)
    start, *ticks, end = compare(session, "arithmetic", TEXT, tick_seconds=0, load=32)
    assert start["load"] == end["load"] == 32
    for lane, pace in (("dense", 2.0), ("sparse", 1.6)):
        last, result = last_lane(ticks, lane), end["lanes"][lane]
        assert last["total_tokens_per_second"] == pytest.approx(32 * 1000 / pace) == result["total_tokens_per_second"]
        assert last["tokens_per_second"] == pytest.approx(1000 / pace) and result["load"] == 32
        waited = 0.021 + (last["tokens"] - 1) * pace / 1000 + 31 * OTHER_PREFILL_S
        assert last["elapsed_s"] == pytest.approx(waited) == result["seconds"]
        assert result["correct"]
    assert ticks[0]["lanes"]["dense"]["total_tokens_per_second"] is None
    assert end["speedup_total"] == pytest.approx(1.25)
    assert "; at 32 requests at once: 16,000 tokens/s dense, 20,000 self-selected, 1.25 times; both" in end["line"]
    assert json.loads(json.dumps([start, *ticks, end])) == [start, *ticks, end]


def test_both_lanes_get_the_same_others():
    """Would catch a race in which one lane has the easier requests beside it, or runs that cannot be repeated."""
    session, store = scripted_session(can_load=True)
    list(compare(session, "arithmetic", TEXT, load=9, seed=3))
    others = [[one.ids for one in lane] for lane in store.engines["span"].others]
    assert len(others) == 2 and all(lane == others[0] and len(lane) == 8 for lane in others)
    list(compare(session, "arithmetic", TEXT, load=9, seed=4))
    assert [one.ids for one in store.engines["span"].others[-1]] != others[0]
    list(compare(session, "arithmetic", TEXT, load=9, seed=3, adapter="plain"))
    plain, span = (store.engines[name].others[-1] for name in ("plain", "span"))
    for bare, named in zip(plain, span, strict=True):
        anchors = TOKENIZER.markers.anchor_index
        assert bare.ids == [token for token in named.ids if token not in anchors] != named.ids


def test_a_load_of_one_changes_nothing():
    """Would catch figures of a load where there is none."""
    session, store = scripted_session(can_load=True)
    ticks = list(compare(session, "arithmetic", TEXT, load=1))
    without = list(compare(scripted_session()[0], "arithmetic", TEXT))
    assert ticks == without and not store.engines["span"].others
    assert all(set(lane) == LANE_FIELDS for tick in ticks if tick["kind"] == "tick" for lane in tick["lanes"].values())


def test_load_in_a_single_lane():
    """Would catch a comparison with a lane that did not run."""
    session, _ = scripted_session(can_load=True)
    *_, end = session.stream(prepare(session, "arithmetic", TEXT, "sparse", load=4))
    assert end["speedup_total"] is None
    assert "; at 4 requests at once 4,000 tokens/s in all; the answer is right" in end["line"]


def test_load_of_one_token_has_no_speed():
    """Would catch a division by zero where no step was taken."""
    session, _ = scripted_session(can_load=True)
    *_, end = compare(session, "arithmetic", TEXT, max_new_tokens=1, load=4)
    assert end["speedup_total"] is None and end["lanes"]["dense"]["total_tokens_per_second"] is None
    assert "requests at once" not in end["line"]


@pytest.mark.parametrize(("speed", "words"), [(41_234.5, "41,200"), (985.4, "985"), (58_049, "58,000"), (9.99, "10")])
def test_speeds_are_rounded_to_what_repeats(speed, words):
    """Would catch digits that the next run would not have, or thousands lost to rounding."""
    assert round_speed(speed) == words


# ---- the line


def result(correct=True, answer="2907", malformed=0, attention="dense"):
    return {
        "correct": correct,
        "answer": answer,
        "expected": "2907",
        "malformed_steps": malformed,
        "attention": attention,
        "tokens": 100,
        "seconds": 1.0,
        "tokens_per_second": 100.0,
    }


@pytest.mark.parametrize(
    ("dense", "sparse", "per_token", "to_answer", "head", "tail"),
    [
        (
            *(result(), result(), 1.423, 1.3),
            "Self-selected attention was 1.42 times as fast per token and 1.30 times as fast to the answer; it read "
            "31 %",
            "both answers are right.",
        ),
        (
            *(result(), result(False, "2906"), 0.85, 0.8),
            "Self-selected attention was slower (0.85 times the speed) per token and slower (0.80 times the speed) to "
            "the answer; it read 31 %",
            "the dense answer is right, the self-selected answer is wrong (2906, expected 2907).",
        ),
        (
            *(result(False, None), result(malformed=2), 1.2, None),
            "Self-selected attention was 1.20 times as fast per token; it read 31 %",
            "the dense answer is missing (expected 2907), the self-selected answer is right; 2 malformed steps "
            "in the self-selected lane.",
        ),
        (
            *(result(False, "1"), result(False, "1"), 1.2, 0.9),
            "Self-selected attention was 1.20 times as fast per token but slower (0.90 times the speed) to the answer; "
            "it read 31 %",
            "both answers are wrong (1, expected 2907).",
        ),
    ],
)
def test_line_is_honest(dense, sparse, per_token, to_answer, head, tail):
    """Would catch a slower run or a wrong answer being dressed up."""
    line = compare_line(Compared({"dense": dense, "sparse": sparse}, per_token, to_answer, 0.31, False), View())
    assert line == f"{head} of what dense attention reads for the same tokens; {tail}"


@pytest.mark.parametrize(
    ("per_token", "to_answer", "words"),
    [
        (0.995, 1.005, "equally fast per token and equally fast to the answer"),
        (0.99, 0.53, "equally fast per token but slower (0.53 times the speed) to the answer"),
        (1.01, 0.53, "equally fast per token but slower (0.53 times the speed) to the answer"),
        (1.30, 1.25, "1.30 times as fast per token and 1.25 times as fast to the answer"),
    ],
)
def test_and_or_but(per_token, to_answer, words):
    """Would catch "equally fast but equally fast", where two speeds fall on different sides of 1 by a hair."""
    both = {"dense": result(), "sparse": result()}
    assert words in compare_line(Compared(both, per_token, to_answer, 0.5, False), View())


def test_phrases():
    """Would catch rounding that turns a little into nothing, or a hair's breadth into a victory."""
    assert speed_phrase(1.015) == "equally fast" == speed_phrase(0.985)
    assert (speed_phrase(1.03), speed_phrase(0.97)) == ("1.03 times as fast", "slower (0.97 times the speed)")
    assert (
        percent(0.004) == "0.4 %" and percent(0.996) == "99.6 %" and percent(1.2) == "120 %" and percent(0.0) == "0 %"
    )


def test_share_against_the_plain_adapter_pays_for_annotations():
    """Would catch comparing the sparse lane with its own longer text where the plain adapter writes a shorter one."""
    session, _ = scripted_session()
    end = list(compare(session, "arithmetic", TEXT, adapter="plain"))[-1]
    dense, sparse = end["lanes"]["dense"], end["lanes"]["sparse"]
    assert end["read_share"] == sparse["attended_tokens"] / dense["attended_tokens"]
    assert end["read_share"] > sparse["attended_tokens"] / sparse["dense_tokens"]
    assert "what the plain adapter's lane read" in end["line"]


# ---- the real engine and tokenizer


@pytest.fixture(scope="module")
def tiny_store(tmp_path_factory):
    base, adapters = save_tiny(tmp_path_factory.mktemp("tiny"), max_context=2048)
    return ModelStore(base, adapters, device="cpu")


@pytest.fixture
def forced_session(tiny_store, monkeypatch):
    """A session whose tiny real models are made to write the right steps: real forwards, caches, clocks and tracker."""
    original = Engine.generate

    def generate(self, request, *args):
        tokenizer = tiny_store.tokenizer
        text = tokenizer.decode(request.prompt.ids).removeprefix("Calculate: ").removesuffix("=")
        ids = right_output(tokenizer, TASK.parse(text), request.annotated)
        return original(self, replace(request, forced_tokens=ids), *args)

    for adapter in ("span", "plain"):  # warmed up before the patch: warming up has forced tokens of its own
        tiny_store.engine("arithmetic", adapter)
    monkeypatch.setattr(Engine, "generate", generate)
    return Session(tiny_store)


@pytest.mark.parametrize("adapter", ["span", "plain"])
@pytest.mark.parametrize("text", ["1+2", TEXT, "-(5-99*98)*7/(3-10)", "-5*(-3)+(4-(-8))*12-96/8"])
def test_real_engine_end_to_end(forced_session, adapter, text):
    """Would catch engine, tokenizer, task and session disagreeing about ids, names, intervals or figures."""
    ticks = list(compare(forced_session, "arithmetic", text, adapter=adapter, tick_seconds=0))
    problem, end = TASK.parse(text), ticks[-1]
    for lane in ("dense", "sparse"):
        result, last = end["lanes"][lane], last_lane(ticks, lane)
        assert result["answer"] == problem.expected and result["correct"] and result["malformed_steps"] == 0
        assert [s["text"] for s in result["steps"]] == [r.work + r.result for r in problem.reductions]
        assert show([i for i in assembled(ticks, lane) if i["kind"] in ("text", "newline")]).strip() == result["output"]
        assert last["elapsed_s"] == pytest.approx(result["seconds"]) and last["ms_per_token"] > 0
        if lane == "sparse" or adapter == "span":
            assert [s["reads"] for s in result["steps"]] == [[f"a{n}" for n in r.reads] for r in problem.reductions]
    sparse = end["lanes"]["sparse"]
    assert 0 < sparse["attended_tokens"] < sparse["dense_tokens"]
    assert end["line"].endswith("both answers are right.")


def test_figures_are_the_engines(forced_session):
    """Would catch running sums that drift from what the engine itself reports at the end."""
    *_, tick, _ = compare(forced_session, "arithmetic", TEXT, tick_seconds=1e9)
    run = prepare(forced_session, "arithmetic", TEXT, "sparse")
    events = list(generate(run.lanes[0].engine, run.lanes[0].prompt, attention="sparse"))
    lane = tick["lanes"]["sparse"]
    assert (lane["tokens"], lane["attended_tokens"], lane["dense_tokens"]) == (
        events[-1].num_tokens,
        events[-1].attended_tokens,
        events[-1].dense_tokens,
    )
    view = LaneView(run.lanes[0].spec, run.lanes[0].engine.model.tokenizer, 24)
    for event in events[:-1]:
        view.apply(event)
    assert (view.attended_tokens, view.dense_tokens) == (events[-1].attended_tokens, events[-1].dense_tokens)
    assert view.seconds == pytest.approx(events[-1].seconds)


@pytest.mark.parametrize("text", ["Grüße, 東京 – 😀!", "  two  spaces ", "a\n\nb"])
def test_shipped_tokenizer_streams_whole_characters(tiny_store, text):
    """Would catch lost spaces and half characters with the tokenizer that users run."""
    stream = TextStream(tiny_store.tokenizer)
    pieces = [stream.push(token) for token in tiny_store.tokenizer.encode(text)]
    assert "".join(pieces) + stream.flush() == text and not any("\ufffd" in piece for piece in pieces)


def test_sampling_is_reproducible(tiny_store):
    """Would catch a seed that is ignored, or two lanes that draw from one generator."""
    session = Session(tiny_store)

    def output(seed, temperature=1.5, **settings):
        settings |= {"max_new_tokens": 12, "temperature": temperature, "seed": seed}
        *_, end = compare(session, "arithmetic", TEXT, **settings)
        return [lane["output"] for lane in end["lanes"].values()]

    assert output(1) == output(1) != output(2)
    assert output(1, top_p=0.5) == output(1, top_p=0.5) != output(1)
    assert output(1, top_p=1e-9) == output(1, temperature=0)


@pytest.fixture(scope="module")
def captured_store(tmp_path_factory):
    """A store whose engines run captured, uncaptured: the CPU passes for a device that captures."""
    base, adapters = save_tiny(tmp_path_factory.mktemp("captured"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(impls, "why_no_kernels", lambda impl, device: None)
        yield ModelStore(base, adapters, device="cpu", impl="captured")


def test_a_real_captured_session_says_what_a_plain_one_says(captured_store, tiny_store):
    """Would catch lanes that the batch engine answers otherwise, or a device whose name hides how it runs."""
    start, *_, end = compare(Session(captured_store), "arithmetic", TEXT, max_new_tokens=24)
    *_, plain = compare(Session(tiny_store), "arithmetic", TEXT, max_new_tokens=24)
    assert start["device"] == "CPU, float32, captured graph" and tiny_store.device_name == "CPU, float32"
    for lane in ("dense", "sparse"):
        for figure in ("output", "tokens", "attended_tokens", "dense_tokens", "malformed_steps", "steps"):
            assert end["lanes"][lane][figure] == plain["lanes"][lane][figure]


@pytest.mark.parametrize("adapter", ["span", "plain"])
def test_a_real_load(captured_store, adapter):
    """Would catch an answer that the load changes, and rows that nobody keeps busy."""
    session = Session(captured_store)
    assert session.can_load
    *ticks, end = compare(session, "arithmetic", TEXT, adapter, max_new_tokens=12, load=3)
    *_, alone = compare(session, "arithmetic", TEXT, adapter, max_new_tokens=12)
    for lane in ("dense", "sparse"):
        assert end["lanes"][lane]["output"] == alone["lanes"][lane]["output"]
        figures = last_lane(ticks, lane)
        assert figures["total_tokens_per_second"] > 1.5 * figures["tokens_per_second"] > 0
    assert end["speedup_total"] > 0 and "at 3 requests at once" in end["line"]
    running = compare(session, "arithmetic", TEXT, adapter, max_new_tokens=12, load=3, tick_seconds=0)
    for _ in range(4):
        next(running)
    running.close()
    assert list(compare(session, "arithmetic", TEXT, adapter, max_new_tokens=12, load=3))[-1]["kind"] == "end"


def test_the_stores_default_is_the_devices(tiny_store, monkeypatch):
    """Would catch a GPU that decodes token by token, or a CPU that is asked for a graph."""
    assert tiny_store.impl == "gather" and not tiny_store.can_load
    monkeypatch.setattr(impls, "why_no_kernels", lambda impl, device: f"impl 'captured': not on this {device.type}")
    monkeypatch.setattr("selfspan_core.engine.model_store.pick_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr("selfspan_core.engine.model_store.pick_dtype", lambda device: torch.bfloat16)
    with pytest.raises(ImplUnavailable, match="'captured': not on this cuda"):
        ModelStore(device="auto")
    assert not ModelStore(device="auto", impl="gather").can_load
