"""Headers that see an index: what the tracker says, what training masks, what the engine reads."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_pool import BatchEngines
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Failed
from selfspan_core.engine.hints import DraftHints
from selfspan_core.errors import ImplUnavailable
from selfspan_core.models.learned import Learned, common, learned_of, record_of
from selfspan_core.models.model import SpanModel
from selfspan_core.spans.render import render
from selfspan_core.spans.tracker import Phase, Tracker
from selfspan_core.tasks.registry import get_task
from tests.support.asking import asked, generate
from tests.support.batch_tools import CAPACITY, alone, by_request
from tests.support.engine_tools import TOLERANCE, logits, tiny_hf
from tests.support.slow import examples
from tests.support.span_examples import MARKERS, PROMPT, STREAMS, worked_example
from training.evaluation.drafts import would_write
from training.loop.masks import _starts, _touched_blocks, block_mask, dense_mask
from training.loop.packing import Row, sample_of, stack, without_mask

REF, GO, RES, END = MARKERS.ref, MARKERS.go, MARKERS.res, MARKERS.end
A = MARKERS.anchors
INDEXED = replace(PROMPT, head_tokens=1)
"""Of the segments [3, 6), [7, 9) and [10, 11), headers see two tokens, two and one; and all between them."""


def example(seed, head_tokens=2):
    return replace(worked_example(seed), head_tokens=head_tokens)


def test_what_a_header_sees_counted_by_hand():
    """Would catch a name that is missing from the index, a tail that is in it, a step that a header sees too late."""
    assert INDEXED.index == ((0, 5), (6, 12))
    tracker = Tracker(MARKERS, INDEXED)
    text = list(range(40, 60))
    first = [REF, A[0], A[3], GO, *text[:3], RES, *text[:3], END]  # positions 12 to 23; <res> is at 19
    states = [tracker.push(token) for token in first]
    assert [state.visible for state in states[:4]] == [((0, 5), (6, 13 + i)) for i in range(4)]
    assert states[4].visible == ((0, 6), (12, 17))
    # <end> has the step before it in view, whole, and so has the header behind it.
    assert states[-1].visible == ((0, 5), (6, 24))
    second = [REF, A[3], A[4], GO, *text[:2], END]  # 24 to 30: without a result, the body is what can be cited
    states = [tracker.push(token) for token in second]
    assert states[0].visible == ((0, 5), (6, 25)) and states[3].header_closed
    assert states[4].visible == ((0, 3), (19, 23), (24, 29))
    # The first step has shrunk to its name, at 14, and <res> with one token behind it.
    assert states[-1].visible == ((0, 5), (6, 12), (14, 15), (19, 21), (24, 31))
    assert tracker.push(REF).visible == ((0, 5), (6, 12), (14, 15), (19, 21), (24, 32))
    assert tracker.index == ((0, 5), (6, 12), (14, 15), (19, 21), (26, 27), (28, 29))


@settings(max_examples=examples(200, 2000), deadline=None)
@given(STREAMS, st.integers(1, 3))
def test_only_headers_see_less(stream, head_tokens):
    """Would catch a grammar, a body or a broken step that depends on what headers see; and a header that sees tokens of
    a segment's tail, or not itself."""
    full, indexed = Tracker(MARKERS, PROMPT), Tracker(MARKERS, replace(PROMPT, head_tokens=head_tokens))
    for token in stream:
        mine, theirs = indexed.push(token), full.push(token)
        assert (mine.phase, mine.step, mine.malformed, mine.header_closed) == (
            theirs.phase,
            theirs.step,
            theirs.malformed,
            theirs.header_closed,
        )
        if mine.phase in (Phase.HEADER, Phase.BETWEEN):
            assert not mine.sees_everything or mine.num_visible == mine.position + 1
            assert mine.visible[-1][1] == mine.position + 1
            for (_, end), (start, _) in zip(mine.visible, mine.visible[1:], strict=False):
                assert end < start
        else:
            assert mine.visible == theirs.visible
    assert indexed.segments == full.segments and indexed.num_malformed == full.num_malformed


@settings(max_examples=examples(100, 1000), deadline=None)
@given(STREAMS, STREAMS)
def test_a_preview_leaves_no_trace(stream, more):
    """Would catch an index that holds a step which was a draft."""
    one, other = Tracker(MARKERS, INDEXED), Tracker(MARKERS, INDEXED)
    for token in stream:
        one.push(token)
        other.push(token)
    told = one.preview(more)
    assert told == [other.push(token) for token in more]
    again = Tracker(MARKERS, INDEXED)
    for token in stream:
        again.push(token)
    assert [one.push(token) for token in more] == [again.push(token) for token in more]
    assert one.index == again.index


def visible_in(mask, query):
    return set(torch.nonzero(mask[query]).flatten().tolist())


@pytest.mark.parametrize("seed", range(6))
def test_training_masks_what_decoding_sees(seed):
    """Would catch an index of another example of the row, of tokens that come later, or of the step itself."""
    row, places = Row(512, 6, pad_id=0), []
    for rendered in (render(example(seed), MARKERS), render(example(seed + 50, 1), MARKERS)):
        places.append((row.used, rendered))
        row.add(sample_of(rendered))
    plain = render(example(seed), MARKERS)
    places.append((row.used, None))
    row.add(without_mask(sample_of(plain)))
    batch = {key: torch.from_numpy(value) for key, value in stack([row]).items()}
    mask = dense_mask(batch["bounds"], batch["indexed"])[0, 0]
    for at, rendered in places:
        if rendered is None:
            assert all(visible_in(mask, at + q) == set(range(at, at + q + 1)) for q in range(len(plain.ids)))
            continue
        for query, seen in enumerate(rendered.visibility):
            assert visible_in(mask, at + query) == {at + p for start, end in seen for p in range(start, end)}, query
    # The GPU's mask is the same function; which of its blocks are looked at is a superset.
    made = block_mask(batch["bounds"], batch["indexed"])
    q, k = torch.meshgrid(torch.arange(512), torch.arange(512), indexing="ij")
    assert torch.equal(made.mask_mod(0, 0, q, k), mask)
    starts, of_index = _starts(batch["bounds"])
    touched, full = _touched_blocks(starts, batch["bounds"][..., 1].int(), of_index)
    blocks = mask.view(4, 128, 4, 128)
    assert (touched[0, 0] >= blocks.any(3).any(1)).all() and (full[0, 0] <= blocks.all(3).all(1)).all()


def test_rows_without_an_index_have_none():
    """Would catch every other training being slowed down by it."""
    row = Row(512, 6, pad_id=0)
    row.add(sample_of(render(worked_example(1), MARKERS)))
    assert set(stack([row])) == {"ids", "labels", "bounds"} and not np.any(row.indexed)


@pytest.fixture(scope="module")
def engine():
    return Engine(SpanModel(tiny_hf()), MARKERS)


@pytest.mark.parametrize("seed", range(4))
def test_the_gathering_reader_reads_the_index(engine, seed):
    """Would catch a header that reads everything, keys gathered in a wrong order, a workspace that is stale."""
    rendered = render(example(seed), MARKERS)
    forced = rendered.ids[rendered.prompt.num_tokens :]
    options = {"forced_tokens": forced, "with_logits": True}
    wanted = list(generate(engine, rendered, "sparse", "reference", **options))
    found = list(generate(engine, rendered, "sparse", "gather", **options))
    torch.testing.assert_close(logits(found), logits(wanted), rtol=TOLERANCE, atol=TOLERANCE)
    dense = replace(rendered, prompt=replace(rendered.prompt, head_tokens=None))
    whole = list(generate(engine, dense, "sparse", "gather", **options))
    assert found[-1].attended_tokens < whole[-1].attended_tokens
    assert (logits(found) - logits(whole)).abs().max() > TOLERANCE


@pytest.mark.parametrize("seed", range(4))
def test_drafts_change_nothing(engine, seed):
    """Would catch a header in the same pass as the step that it sees, or an index that holds a rejected draft."""
    rendered = render(example(seed), MARKERS)
    request = {"max_new_tokens": 60}
    plain = [event.id for event in generate(engine, rendered, "sparse", "gather", **request) if hasattr(event, "id")]
    rng = random.Random(seed)

    class Guesses:
        def propose(self, state, most):
            place = len(state.ids) - state.num_prompt
            return [token if rng.random() < 0.8 else rng.randrange(64) for token in plain[place : place + most]]

    drafted = generate(engine, rendered, "sparse", "gather", drafter=Guesses(), **request)
    assert [event.id for event in drafted if hasattr(event, "id")] == plain


def in_batch(weights, requests, batch, attention, **options):
    shape = BatchShape(batch, CAPACITY, attention == "dense", **options)
    return by_request(BatchEngine(weights, MARKERS, shape).generate(requests))


@pytest.mark.parametrize("attention", ["sparse", "dense"])
def test_rows_of_a_batch_as_if_each_were_alone(engine, attention):
    """Would catch a batch whose headers read everything, or another row's index, and a row that keeps the index of the
    request before; and a dense lane that reads less than everything."""
    rendered = [render(example(seed, 1 + seed % 2), MARKERS) for seed in range(5)]
    requests = [asked(one, forced_tokens=one.ids[one.prompt.num_tokens :]) for one in rendered]
    found = in_batch(engine.model.weights, requests, 2, attention, with_index=attention == "sparse")
    for number, request in enumerate(requests):
        assert found[number] == alone(engine.model.weights, request, attention)


def test_a_batch_without_refuses_it(engine):
    """Would catch headers that read everything without a word, and drafts whose table has no room for an index."""
    request = asked(render(example(1), MARKERS), max_new_tokens=3)
    (failed,) = BatchEngine(engine.model.weights, MARKERS, BatchShape(1, CAPACITY, False)).generate([request])
    assert isinstance(failed[1], Failed) and "headers that see an index" in str(failed[1].error)
    with pytest.raises(ValueError, match="not with drafts"):
        BatchShape(1, CAPACITY, False, with_index=True, drafts="auto")
    assert engine.drafter(request, DraftHints(), "auto", "sparse", "captured") is None
    assert engine.drafter(request, DraftHints(), "auto", "dense", "captured") is not None
    with pytest.raises(ImplUnavailable, match="choose off or auto"):
        engine.drafter(request, DraftHints(), 4, "sparse", "captured")


def test_engines_with_an_index_are_kept_beside_those_without(engine):
    """Would catch an engine that is made anew for every other request, and one without an index for a request that has
    one."""
    engines = BatchEngines(engine.model.weights, MARKERS)
    indexed = asked(render(example(1), MARKERS), max_new_tokens=3)
    full = asked(render(worked_example(1), MARKERS), max_new_tokens=3)
    kept = [engines.get("sparse", 1, CAPACITY, one) for one in (indexed, full)]
    assert kept[0] is not kept[1]
    assert [engines.get("sparse", 1, CAPACITY, one) for one in (indexed, full)] == kept
    assert engines.get("dense", 1, CAPACITY, indexed) is engines.get("dense", 1, CAPACITY, full)


def test_what_adapters_learned_reaches_the_prompt(tmp_path):
    """Would catch an adapter that is asked in another way than it was trained in."""
    (tmp_path / "training.json").write_text(json.dumps(record_of(Learned(head_tokens=2))))
    learned = learned_of(tmp_path)
    assert learned == Learned(head_tokens=2) and record_of(Learned()) == {}
    assert common([Learned(), learned]) == learned
    task = get_task("arithmetic").for_model(4096, learned)
    assert task.head_tokens == 2 and get_task("arithmetic").head_tokens is None


def test_a_worked_solution_is_judged_under_the_index(engine):
    """Would catch an evaluation that lets headers see everything."""
    drafts = [render(example(seed), MARKERS) for seed in range(3)]
    told = would_write(engine.model, drafts, sparse=True)
    assert told == [False] * 3
