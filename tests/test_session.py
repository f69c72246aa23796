"""The session: engine events become ticks, results and one honest line. Scripted lanes first, then tiny real models."""

import json
from types import SimpleNamespace

import pytest

from selfspan_core.engine.stores import Terms
from selfspan_core.errors import LaneError
from selfspan_core.params import Request
from tests.support.asking import compare
from tests.support.scripted import FakeClock, right_output
from tests.support.session_tools import (
    LANE_FIELDS,
    RESULT_FIELDS,
    TASK,
    TEXT,
    TOKENIZER,
    assembled,
    last_lane,
    scripted_session,
    show,
)

# ---- schema


def test_start_tick_end():
    """Would catch a drift of the schema that the app and the API rely on."""
    session, _ = scripted_session()
    ticks = list(compare(session, "arithmetic", " 79 × 36 + 63 "))
    start, *middle, end = ticks
    assert [tick["kind"] for tick in ticks] == ["start", *["tick"] * len(middle), "end"]
    assert start == {
        "kind": "start",
        "view": {
            **{"pane": "line", "answer": "answer", "step": "step", "typeset": True},
            **{"source": "The expression", "segment": "number"},
        },
        "task": "arithmetic",
        "input": " 79 × 36 + 63 ",
        "canonical": "79*36+63",
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
            {
                "id": "dense",
                "label": "Dense attention, span adapter",
                "attention": "dense",
                "adapter": "span",
                "prompt_tokens": 24,
                "segments": {"a0": [12, 15], "a1": [16, 19], "a2": [20, 23]},
            },
            {
                "id": "sparse",
                "label": "Self-selected attention, span adapter",
                "attention": "sparse",
                "adapter": "span",
                "prompt_tokens": 24,
                "segments": {"a0": [12, 15], "a1": [16, 19], "a2": [20, 23]},
            },
        ],
        "expected": "2907",
        "device": "script, float32",
        "clock": "host",
        "drafts": "auto",
        "bytes_per_token": 2048,
    }
    for tick in middle:
        assert set(tick) == {"kind", "lanes"} and list(tick["lanes"]) == ["dense", "sparse"]
        assert all(set(lane) == LANE_FIELDS for lane in tick["lanes"].values())
    assert set(end) == {
        *("kind", "input", "canonical", "expected", "lanes", "line", "headline"),
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
    assert end["speedup_ms_per_token"] is None and "too few tokens to compare speed" in end["line"]


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


@pytest.mark.parametrize(("impl", "asked", "drafts"), [("captured", "auto", "off"), ("gather", "auto", "auto")])
def test_no_lane_drafts_where_one_cannot(impl, asked, drafts):
    """Would catch a dense lane with drafts beside a self-selected one without, and a start that says they are on."""
    session, _ = scripted_session()
    session._models = SimpleNamespace(impl=impl, terms=Terms(), device_name="script")

    def lane(attention, head_tokens):
        layout = SimpleNamespace(head_tokens=head_tokens)
        spec = SimpleNamespace(annotated=True, attention=attention)
        return SimpleNamespace(spec=spec, prompt=SimpleNamespace(prompt=layout))

    request = Request("arithmetic", "1+2", drafts=asked)
    assert session._drafts(request, [lane("dense", 2), lane("sparse", 2)]) == drafts
    assert session._drafts(request, [lane("dense", 2), lane("sparse", None)]) == "auto"
    told = session._left_out(TASK, request, drafts)
    assert told == ("script decodes without drafts." if drafts == "off" else "")
