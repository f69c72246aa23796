"""What `training.bench_engine` measures of one model shape: one function a cell, each with its floor of bytes."""

import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.batch_step import Attend, BatchStep
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.protocol import Markers, PromptLayout
from selfspan_core.spans.tracker import MAX_READS
from training.bench.replay import Recording, Replay
from training.bench.shapes import Machine, kv_bytes, make_cache

FIXED_STEPS = 12
LONG_DENSITIES = (0.1, 0.25, 0.5)
KINDS = {
    "attention": ("selfspan_attention",),
    "tracker, planning, sampling": ("selfspan_track", "selfspan_plan", "selfspan_advance", "selfspan_sample"),
    "norms, rotary, activation, embedding": ("add_rms_norm", "rotary_write", "gated_silu", "index", "gather"),
    "weights": ("gemm", "gemv", "cutlass", "xmma", "splitk", "nvjet", "dot_kernel", "reduce_1block", "selfspan_linear"),
}


# ---- replayed arithmetic


def replay_cell(
    weights: DecodeWeights,
    markers: Markers,
    machine: Machine,
    recorded: dict[str, list[Recording]],
    batch: int,
    stride: int,
) -> dict:
    """Dense and self-selected on the same text, and the plain adapter's text dense, at one batch size."""
    chosen = {name: list(itertools.islice(itertools.cycle(all_of), batch)) for name, all_of in recorded.items()}
    capacity = max(one.layout.num_tokens + len(one.ids) for rows in chosen.values() for one in rows)
    capacity = -(-capacity // 64) * 64
    made = make_cache(weights, machine, batch, capacity)
    if made is None:
        return {"batch": batch, "unavailable": f"{batch} x {capacity} tokens do not fit"}
    cache, shared = made
    lanes = {
        "span-dense": ReplayedLane(weights, markers, cache, chosen["span"], is_dense=True),
        "span-sparse": ReplayedLane(weights, markers, cache, chosen["span"], is_dense=False),
        "plain-dense": ReplayedLane(weights, markers, cache, chosen["plain"], is_dense=True),
    }
    for _ in range(0, max(lane.longest for lane in lanes.values()), stride):
        for lane in lanes.values():
            lane.sample(stride)
    figures = {name: lane.figures(machine, stride) for name, lane in lanes.items()}
    dense, sparse, plain = figures.values()
    predicted = dense["floor_ms"] / sparse["floor_ms"]
    speedup = dense["ms_per_step"] / sparse["ms_per_step"]
    return {
        "batch": batch,
        "capacity": capacity,
        "layers_per_cache": shared,
        "lanes": figures,
        "visible_share": sparse["visible_tokens"] / dense["visible_tokens"],
        "speedup": speedup,
        "speedup_predicted_by_bytes": predicted,
        "share_of_predicted": speedup / predicted,
        "time_to_answer_speedup": plain["seconds_to_answer"] / sparse["seconds_to_answer"],
    }


class ReplayedLane:
    """One lane of a cell: rows that follow their recordings, and what their steps took."""

    def __init__(
        self,
        weights: DecodeWeights,
        markers: Markers,
        cache: KVCache,
        recordings: Sequence[Recording],
        is_dense: bool,
    ) -> None:
        self._weights = weights
        shape = BatchShape(len(recordings), cache.capacity, is_dense)
        self.replay = Replay(BatchStep(weights, markers, shape, cache=cache))
        self._recordings = recordings
        self._visible = [one.num_visible(markers, is_dense) for one in recordings]
        for row, one in enumerate(recordings):
            self.replay.follow(row, one)
        self._at = 0
        self._sampled: list[int] = []
        # The last id never becomes a query.
        self._lengths = [len(one.ids) - 1 for one in recordings]
        self.longest = max(self._lengths)

    def sample(self, stride: int) -> None:
        """The next steps, the last of them with the model."""
        if self._at + stride > self.longest:
            return
        self.replay.move(stride - 1)
        self.replay.launch()
        self._sampled.append(self._at + stride - 1)
        self._at += stride

    def figures(self, machine: Machine, stride: int) -> dict:
        """Means over the steps in which all rows are active, and the time to a row's answer."""
        seconds = dict(zip(self._sampled, self.replay.seconds(), strict=True))
        common = [at for at in seconds if at < min(self._lengths)]
        kv = kv_bytes(self._weights)
        visible = [sum(row[at] for row in self._visible) for at in common]
        floors = [(self._weights.num_bytes + kv * tokens) / machine.bytes_per_second for tokens in visible]
        mean = statistics.fmean(seconds[at] for at in common)
        # The steps between two samples take as long as the later one; what is behind the last, as long as it.
        ends = list(itertools.accumulate(stride * seconds[at] for at in sorted(seconds)))
        last = seconds[max(seconds)]

        def until(length: int) -> float:
            whole, rest = divmod(length, stride)
            whole = min(whole, len(ends))
            reached = ends[whole - 1] if whole else 0.0
            step = seconds.get(whole * stride + stride - 1, last)
            return reached + rest * step

        return {
            "ms_per_step": 1000 * mean,
            "tokens_per_second": len(self._recordings) / mean,
            "floor_ms": 1000 * statistics.fmean(floors),
            "share_of_floor": statistics.fmean(floors) / mean,
            "visible_tokens": statistics.fmean(visible),
            "steps_sampled": len(common),
            "mean_tokens": statistics.fmean(len(one.ids) for one in self._recordings),
            "seconds_to_answer": statistics.fmean(until(length) for length in self._lengths),
        }


# ---- one context


def fixed_cell(weights: DecodeWeights, markers: Markers, machine: Machine, batch: int, context: int) -> dict:
    """A dense step of which every row reads `context` tokens, by the kernel of this project and by PyTorch's."""
    made = make_cache(weights, machine, batch, context + 2 * FIXED_STEPS)
    if made is None:
        return {"batch": batch, "context": context, "unavailable": f"{batch} x {context} tokens do not fit"}
    cache, shared = made
    text = max(markers.ids) + 1
    recording = Recording(PromptLayout(context - 1, 1, {}), (text,) * (FIXED_STEPS + 4), False, (text,) * (context - 1))
    attentions: dict[str, Attend | None] = {"this kernel": None}
    for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
        attentions[name] = torch_attention(cache, context, backend)
    times: dict[str, object] = {}
    for name, attend in attentions.items() if machine.device.type == "cuda" else [("this kernel", None)]:
        try:
            shape = BatchShape(batch, cache.capacity, is_dense=True)
            replay = Replay(BatchStep(weights, markers, shape, cache=cache, attend=attend))
            times[name] = median_ms(replay, batch, recording, 0, FIXED_STEPS)
        except Exception as error:  # a peer's errors are of any kind
            times[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    best = min(ms for ms in times.values() if isinstance(ms, float))
    floor = 1000 * (weights.num_bytes + kv_bytes(weights) * batch * context) / machine.bytes_per_second
    return {
        "batch": batch,
        "context": context,
        "layers_per_cache": shared,
        "ms_per_step": times,
        "floor_ms": floor,
        "best_over_floor": best / floor,
        "this_kernel_over_floor": times["this kernel"] / floor,
    }


def median_ms(replay: Replay, batch: int, recording: Recording, num_skipped: int, num_steps: int) -> float:
    """Median of whole steps, but for the first two, of rows that all follow one recording from a place on."""
    for row in range(batch):
        replay.follow(row, recording)
    replay.move(num_skipped)
    for _ in range(num_steps):
        replay.launch()
    return 1000 * statistics.median(replay.seconds()[2:])


def torch_attention(cache: KVCache, context: int, backend: SDPBackend) -> Attend:
    """PyTorch's fused attention over the first `context` positions."""

    def attend(layer: int, queries: torch.Tensor) -> torch.Tensor:
        keys, values = cache.keys[layer][:, :, :context], cache.values[layer][:, :, :context]
        grouped = queries.shape[1] != keys.shape[1]
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(queries[:, :, None], keys, values, enable_gqa=grouped)[:, :, 0]

    return attend


# ---- long contexts


def long_recording(markers: Markers, context: int, density: float, num_body: int) -> Recording:
    """A step that reads MAX_READS segments, spread over a prompt, which together hold that share of it."""
    size = int(context * density / MAX_READS)
    gap = context // MAX_READS
    starts = [16 + gap * i + (gap - size) // 2 for i in range(MAX_READS)]
    names = markers.anchors[: MAX_READS + 1]
    segments = {name: (start, min(start + size, context)) for name, start in zip(names, starts, strict=False)}
    header = (markers.ref, *names[:MAX_READS], names[MAX_READS], markers.go)
    text = max(markers.ids) + 1
    return Recording(PromptLayout(context, 16, segments), (*header, *[text] * num_body), True, (text,) * context)


def long_cell(weights: DecodeWeights, markers: Markers, machine: Machine, batch: int, context: int) -> dict:
    """Bodies that read a tenth, a quarter, half of a long context, against dense attention over all of it."""
    num_header, num_body = MAX_READS + 3, 16
    made = make_cache(weights, machine, batch, context + 64)
    if made is None:
        return {"batch": batch, "context": context, "unavailable": f"{batch} x {context} tokens do not fit"}
    cache, shared = made
    figures = {}
    for density in (None, *LONG_DENSITIES):
        recording = long_recording(markers, context, density or LONG_DENSITIES[0], num_body)
        shape = BatchShape(batch, cache.capacity, is_dense=density is None)
        replay = Replay(BatchStep(weights, markers, shape, cache=cache))
        ms = median_ms(replay, batch, recording, num_header + 2, num_body - 4)
        visible = recording.num_visible(markers, density is None)[-1]
        floor = 1000 * (weights.num_bytes + kv_bytes(weights) * batch * visible) / machine.bytes_per_second
        figures["dense" if density is None else f"{density:g}"] = {
            "ms_per_step": ms,
            "tokens_per_second": 1000 * batch / ms,
            "floor_ms": floor,
            "visible_tokens_per_row": visible,
        }
        del replay
    dense = figures["dense"]
    for one in figures.values():
        one["speedup"] = dense["ms_per_step"] / one["ms_per_step"]
        one["speedup_predicted_by_bytes"] = dense["floor_ms"] / one["floor_ms"]
    return {"batch": batch, "context": context, "layers_per_cache": shared, "lanes": figures}


# ---- where the time goes


def profile_cell(weights: DecodeWeights, markers: Markers, machine: Machine, recordings: list[Recording]) -> dict:
    """Kernels of a step by kind, and what the host calls from the first launch to the last."""
    from torch.profiler import ProfilerActivity, profile

    batch, num_steps = len(recordings), 8
    capacity = max(one.layout.num_tokens + len(one.ids) for one in recordings)
    made = make_cache(weights, machine, batch, capacity)
    if made is None:
        return {"batch": batch, "unavailable": f"{batch} x {capacity} tokens do not fit"}
    lane = ReplayedLane(weights, markers, made[0], recordings, is_dense=False)
    replay = lane.replay
    replay.move(min(len(one.ids) for one in recordings) // 2)
    replay.launch()
    replay.seconds()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(num_steps):
            replay.step.launch()
        torch.cuda.synchronize()
    on_device = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    spans = [(event.name, event.time_range.start, event.time_range.end) for event in on_device]
    kernels_of = {name: micros / num_steps for name, micros in exclusive_micros(spans).items()}
    micros: Counter = Counter()
    for name, value in kernels_of.items():
        micros[kind_of(name)] += value
    on_host = [event for event in profiled.events() if event.name.startswith(("cuda", "cu"))]
    launches = [event.time_range for event in on_host if "GraphLaunch" in event.name]
    first, last = launches[0].start, launches[-1].end
    calls = Counter(event.name for event in on_host if first <= event.time_range.start <= last)
    kernels = sum(micros.values())
    return {
        "batch": batch,
        "microseconds_per_step": dict(micros.most_common()),
        "share": {kind: value / kernels for kind, value in micros.most_common()},
        "kernels": {name[:80]: value for name, value in Counter(kernels_of).most_common(16)},
        "host_calls": {"steps": num_steps, "calls": dict(calls.most_common())},
    }


def exclusive_micros(spans: Sequence[tuple[str, float, float]]) -> dict[str, float]:
    """Microseconds by kernel in which it was the first of those that run: one that has begun early only waits.

    Args:
        spans: name, start and end of every kernel, in microseconds.
    """
    found: Counter = Counter()
    reached = -math.inf
    for name, start, end in sorted(spans, key=lambda span: span[1]):
        found[name] += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return dict(found)


def kind_of(kernel: str) -> str:
    """What a kernel does, by its name."""
    return next((kind for kind, parts in KINDS.items() if any(part in kernel.lower() for part in parts)), "the rest")


# ---- transformers as it is


def transformers_cell(weights: DecodeWeights, batch: int, context: int, static: bool) -> dict:
    """`generate` of transformers on the same weights: eager, or with a static cache and torch.compile."""
    hf, num_new = weights.model.hf, 24
    hf.set_attn_implementation("sdpa")
    ids = torch.randint(1000, (batch, context), device=weights.model.device)
    options = {"cache_implementation": "static"} if static else {"disable_compile": True}

    def run(count: int) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        hf.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0, **options)
        torch.cuda.synchronize()
        return time.perf_counter() - started

    try:
        run(num_new)
        if static:
            run(num_new)
        ms = 1000 * (run(num_new) - run(4)) / (num_new - 4)
    except Exception as error:
        return {"batch": batch, "unavailable": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
    finally:
        hf.set_attn_implementation("selfspan")
    return {"batch": batch, "context": context, "static_cache_compiled": static, "ms_per_step": ms}
