"""Sessions with other requests beside the two lanes."""

import json

import pytest

from selfspan_core.compare.verdict import round_speed
from tests.support.asking import compare, prepare
from tests.support.scripted import OTHER_PREFILL_S
from tests.support.session_tools import LANE_FIELDS, TEXT, TOKENIZER, last_lane, scripted_session


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
