"""Packed rows and their masks."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Example, Part, Step, VisibleRun, render
from training.loop.masks import _as_indices, _starts, _touched_blocks, block_mask, dense_mask
from training.loop.packing import IGNORE, Row, Sample, pack, plain_sample, sample_of, stack, without_mask

MARKERS = Markers(1, 2, 4, 5, 6, 7, tuple(range(8, 264)))


def chain(rng: random.Random, num_operands: int) -> Example:
    offset = rng.randrange(256)
    values = [rng.randrange(300, 400) for _ in range(num_operands)]
    parts = tuple(Part((value, value), MARKERS.name(offset, i)) for i, value in enumerate(values))
    steps, current = [], 0
    for i in range(1, num_operands):
        reads = (MARKERS.name(offset, current), MARKERS.name(offset, i))
        current = num_operands + i - 1
        steps.append(Step(reads, MARKERS.name(offset, current), (values[i],), (values[i - 1], values[i])))
    return Example((1, 300), parts, tuple(steps))


def visible_positions(bounds: np.ndarray) -> set[int]:
    return {p for start, end in bounds.tolist() for p in range(start, end)}


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_packed_bounds_are_the_trackers(seed, num_samples):
    """Would catch bounds that are off by the sample's offset, or that leak into a neighbouring sample."""
    rng = random.Random(seed)
    row = Row(512, 4, pad_id=0)
    expected = {}
    for _ in range(num_samples):
        rendered = render(chain(rng, rng.randint(2, 6)), MARKERS)
        if len(rendered.ids) > row.room:
            break
        offset = row.used
        row.add(sample_of(rendered))
        for query, intervals in enumerate(rendered.visibility):
            expected[offset + query] = {offset + p for start, end in intervals for p in range(start, end)}
    for query in range(512):
        assert visible_positions(row.bounds[query]) == expected.get(query, {query})


def test_without_the_mask_everything_before_is_seen():
    """Would catch a dense example that keeps a trace of its spans, or sees its neighbour in the row."""
    sample = sample_of(render(chain(random.Random(0), 4), MARKERS))
    row = Row(256, 4, pad_id=0)
    row.add(sample)
    row.add(without_mask(sample))
    n = len(sample.ids)
    assert [visible_positions(row.bounds[q]) for q in range(n, 2 * n)] == [
        set(range(n, q + 1)) for q in range(n, 2 * n)
    ]
    assert any(visible_positions(row.bounds[q]) != set(range(q + 1)) for q in range(n))
    assert (row.labels[n : 2 * n] == row.labels[:n]).all()


def test_labels_are_the_next_token_and_never_cross_samples():
    """Would catch labels shifted by one, a prompt that is learned, or a sample that predicts its neighbour."""
    row = Row(128, 1, pad_id=0)
    row.add(Sample(np.array([5, 6, 7, 8]), np.array([0, 0, 1, 1]), (VisibleRun(0, (), 0),)))
    row.add(plain_sample(np.array([9, 10])))
    assert row.labels[:6].tolist() == [IGNORE, 7, 8, IGNORE, 10, IGNORE]
    assert (row.labels[6:] == IGNORE).all()


def test_a_row_refuses_what_it_cannot_record():
    """Would catch intervals dropped silently when a query sees more of them than a row has slots for."""
    rendered = render(chain(random.Random(0), 4), MARKERS)
    with pytest.raises(ValueError, match="intervals"):
        Row(256, 2, 0).add(sample_of(rendered))
    with pytest.raises(ValueError, match="does not fit"):
        Row(128, 4, 0).add(plain_sample(np.ones(129, int)))


def test_pack_keeps_every_sample_that_fits():
    """Would catch samples lost or doubled when rows are emitted."""
    rng = random.Random(1)
    samples = [plain_sample(np.full(rng.randint(2, 200), i + 1)) for i in range(300)]
    counts = np.zeros(301, int)
    for row in pack(samples, 256, 1, pad_id=0):
        counts += np.bincount(row.ids, minlength=301)
    assert [counts[i + 1] for i in range(300)] == [len(s.ids) for s in samples]
    assert not list(pack([plain_sample(np.ones(300, int))], 256, 1, 0))


def _intervals(bounds):
    starts, of_index = _starts(bounds)
    return starts, bounds[..., 1].int(), of_index


@given(st.integers(0, 10_000))
def test_block_mask_touches_what_the_dense_mask_shows(seed):
    """Would catch a block mask that skips a visible block, or evaluates no mask in a block that is partly hidden."""
    rng = random.Random(seed)
    rows = []
    for _ in range(2):
        row = Row(512, 4, pad_id=0)
        while row.room > 200:
            row.add(sample_of(render(chain(rng, rng.randint(2, 12)), MARKERS)))
        rows.append(row)
    bounds = torch.from_numpy(stack(rows)["bounds"])
    blocks = dense_mask(bounds)[:, 0].view(2, 4, 128, 4, 128)
    touched, full = _touched_blocks(*_intervals(bounds))
    assert torch.equal(touched[:, 0], blocks.any(4).any(2))
    assert (full[:, 0] <= blocks.all(4).all(2)).all()


def test_block_mask_function_equals_the_dense_mask():
    """Would catch a mask function that reads the wrong slot, row or bound."""
    row = Row(256, 4, pad_id=0)
    row.add(sample_of(render(chain(random.Random(3), 8), MARKERS)))
    bounds = torch.from_numpy(stack([row])["bounds"])
    mask = block_mask(bounds)
    q, k = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    assert torch.equal(mask.mask_mod(0, 0, q, k), dense_mask(bounds)[0, 0])
    assert mask.shape == (1, 1, 256, 256)


def test_indices_list_true_blocks_first_in_order():
    """Would catch an unstable sort, which would make the kernel walk blocks out of order."""
    count, index = _as_indices(torch.tensor([[[[False, True, False, True]]]]))
    assert count.item() == 2
    assert index[0, 0, 0, :2].tolist() == [1, 3]


def test_block_mask_needs_whole_blocks():
    """Would catch rows whose tail no block covers."""
    with pytest.raises(ValueError, match="128"):
        block_mask(torch.zeros(1, 100, 1, 2, dtype=torch.int16))
