"""Time to an answer with and without drafts: recorded texts through a model of any shape, lane by lane."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch

from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.batch_step import BatchStep
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.hints import DraftHints
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.protocol import Markers
from training.bench.replay import Recording, Replay
from training.bench.shapes import Machine, kv_bytes, make_cache
from training.bench.texts import Text

LANES = {
    # name: whether it writes names, whether every query reads everything, whether it drafts
    "plain dense": (False, True, False),
    "plain dense + lookup": (False, True, True),
    "span sparse": (True, False, False),
    "span sparse + drafts": (True, False, True),
}
UNDRAFTED = {"plain dense + lookup": "plain dense", "span sparse + drafts": "span sparse"}


class AnswerLane:
    """Rows that follow their recordings in steps of one size; some of their steps run whole and are timed.

    Args:
        step: whose rows are free.
        recordings: one per row.
        drafts: what drafts them; None: steps bring one id.
        num_samples: whole steps, about.
    """

    def __init__(
        self, step: BatchStep, recordings: Sequence[Recording], drafts: DeviceDrafts | None, num_samples: int
    ) -> None:
        self.replay = Replay(step, drafts)
        self._recordings = recordings
        self._num_steps = self.replay.rehearse(recordings)
        for row, recording in enumerate(recordings):
            self.replay.follow(row, recording)
        self._stride = max(1, max(self._num_steps) // num_samples)
        self._at = 0
        self._planned: list[torch.Tensor] = []

    def sample(self) -> bool:
        """The next steps, the last of them whole; False: there are no more."""
        if self._at + self._stride > max(self._num_steps):
            return False
        self.replay.move(self._stride - 1)
        self.replay.launch()
        self._planned.append(self.replay.step.num_planned)
        self._at += self._stride
        return True

    def figures(self, weights: DecodeWeights, machine: Machine) -> dict:
        """Means over the steps in which all rows are active, and the mean time to a row's answer."""
        seconds = self.replay.seconds()
        # The steps between two samples take as long as the later one; those behind the last as long as it.
        each = [seconds[min(at // self._stride, len(seconds) - 1)] for at in range(max(self._num_steps))]
        ends = list(itertools.accumulate(each))
        common = [n for n in range(len(seconds)) if (n + 1) * self._stride <= min(self._num_steps)] or [0]
        planned = statistics.fmean(int(self._planned[n]) for n in common)
        mean = statistics.fmean(seconds[n] for n in common)
        floor = (weights.num_bytes + kv_bytes(weights) * planned) / machine.bytes_per_second
        num_tokens = [len(recording.ids) - 1 for recording in self._recordings]
        return {
            "ms_per_step": 1000 * mean,
            "floor_ms": 1000 * floor,
            "share_of_floor": floor / mean,
            "tokens_per_step": sum(num_tokens) / sum(self._num_steps),
            "tokens_read_per_step": planned,
            "tokens": statistics.fmean(num_tokens) + 1,
            "seconds_to_answer": statistics.fmean(ends[num - 1] for num in self._num_steps),
            "steps_sampled": len(common),
        }


def answer_cell(
    weights: DecodeWeights,
    markers: Markers,
    machine: Machine,
    text: Text,
    batch: int,
    num_samples: int,
    with_auto: bool = False,
) -> dict:
    """All lanes of one text at one batch size, drafted ones in every size of step that "auto" chooses from.

    Args:
        weights: of the shape.
        markers: of the tokenizer that the texts were written with.
        machine: that is measured.
        text: to be replayed.
        batch: rows.
        num_samples: whole steps of a text, about.
        with_auto: whether "auto" itself chooses the sizes in one more lane for each that drafts; all of its steps run
            whole, and those of the same lane without drafts.
    """
    capacity = max(one.layout.num_tokens + len(one.ids) for one in (*text.span, *text.plain)) + 1
    made = make_cache(weights, machine, batch, -(-capacity // 64) * 64)
    if made is None:
        return {"text": text.name, "batch": batch, "unavailable": f"{batch} x {capacity} tokens do not fit"}
    cache, shared = made
    chosen = {
        is_span: list(itertools.islice(itertools.cycle(text.span if is_span else text.plain), batch))
        for is_span in (True, False)
    }
    lanes = {
        (name, size): _lane(weights, markers, cache, chosen[is_span], text, (is_dense, size, num_samples))
        for name, (is_span, is_dense, is_drafted) in LANES.items()
        for size in (BatchShape(batch, 2, True, drafts="auto").sizes[1:] if is_drafted else (1,))
    }
    running = list(lanes.values())
    while running:  # the lanes take turns
        running = [lane for lane in running if lane.sample()]
    figures = {key: lane.figures(weights, machine) for key, lane in lanes.items()}
    cell = {"text": text.name, "batch": batch, "layers_per_cache": shared, "lanes": compared(figures)}
    if with_auto:
        del lanes, running  # their graphs take memory that the last lane needs
        cell["auto"] = {}
        for name in UNDRAFTED:
            recordings = chosen[LANES[name][0]]
            cell["auto"][name] = _auto(weights, markers, cache, recordings, text.hints, name, cell["lanes"])
    return cell


def _auto(
    weights: DecodeWeights,
    markers: Markers,
    cache: KVCache,
    recordings: Sequence[Recording],
    hints: DraftHints,
    name: str,
    lanes: dict[str, dict],
) -> dict:
    """A drafted lane as an engine runs it: sizes are chosen while decoding, by what steps took and brought.

    Beside it the same without drafts, all of its steps whole, too: a GPU that computes all the time has a lower clock
    than one that runs a whole step now and then.
    """
    shape = BatchShape(len(recordings), cache.capacity, LANES[name][1], drafts="auto")
    step = BatchStep(weights, markers, replace(shape, drafts="off"), cache=cache)
    undrafted = statistics.fmean(Replay(step).run(recordings))
    step = BatchStep(weights, markers, shape, cache=cache)
    seconds = statistics.fmean(Replay(step, DeviceDrafts(hints, max(shape.sizes) - 1)).run(recordings))
    return {
        "seconds_to_answer": seconds,
        "steps": step.num_launched,
        "undrafted_seconds_to_answer": undrafted,
        "undrafted_over_this": undrafted / seconds,
        "best_size_over_this": lanes[name]["seconds_to_answer"] / seconds,
        "plain_dense_over_this": lanes["plain dense"]["seconds_to_answer"] / seconds,
    }


def _lane(
    weights: DecodeWeights,
    markers: Markers,
    cache: KVCache,
    recordings: Sequence[Recording],
    text: Text,
    settings: tuple[bool, int, int],
) -> AnswerLane:
    is_dense, size, num_samples = settings
    drafts = "off" if size == 1 else size - 1
    shape = BatchShape(len(recordings), cache.capacity, is_dense, drafts=drafts)
    own = None if size == 1 else DeviceDrafts(text.hints, size - 1)
    return AnswerLane(BatchStep(weights, markers, shape, cache=cache), recordings, own, num_samples)


def compared(figures: dict[tuple[str, int], dict]) -> dict:
    """Per lane its figures with the size of step that answers soonest, all sizes beside them, and its ratios.

    Args:
        figures: (lane, queries per row) -> figures. Without drafts counts among a drafted lane's sizes: so "auto" does.
    """
    found: dict[str, dict] = {}
    for name in LANES:
        sizes = {size: one for (lane, size), one in figures.items() if lane in (name, UNDRAFTED.get(name))}
        best = min(sizes, key=lambda size: sizes[size]["seconds_to_answer"])
        found[name] = {"queries_per_row": best, **sizes[best]}
        if len(sizes) > 1:
            keys = ("ms_per_step", "tokens_per_step", "seconds_to_answer")
            found[name]["sizes"] = {str(size): {key: one[key] for key in keys} for size, one in sorted(sizes.items())}
    for one in found.values():
        seconds = one["seconds_to_answer"]
        one["plain_dense_over_this"] = found["plain dense"]["seconds_to_answer"] / seconds
        one["lookup_over_this"] = found["plain dense + lookup"]["seconds_to_answer"] / seconds
        one["tokens_per_second_per_row"] = (one["tokens"] - 1) / seconds
    return found
