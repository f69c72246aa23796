"""Decoding at full size: `python -m training.bench_engine` -> assets/results/engine_<gpu>.json.

Physics. A decode step reads every weight once, and the keys and values that its rows may see. At batch 1 the weights
are nearly all of it; with each row more, attention's share grows, and what self-selection saves with it. The floor of
a step is those bytes at the rate of a kernel that only reads, measured in the same run; the speedup that the bytes
predict is the ratio of two floors.

Method. The shipped model solves expressions; what it wrote is then forced through models of other shapes, whose
weights are random: shapes, visibility, lengths and timing are real, the text is not theirs. Dense and self-selected
steps alternate in one run, over one and the same cache. Of a text, every STRIDE-th step is run and timed (by events on
the device), and stands for those in between, in which only the trackers move. Where a cache does not fit, pairs of
layers share one (the results say so): as many bytes are read, from memory that is much larger than any cache on
the chip.
"""

import argparse
import itertools
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM

from selfspan_core.batch_engine import BatchEngine
from selfspan_core.decoder import Attend, DecodeWeights
from selfspan_core.kv_cache import KVCache
from selfspan_core.model import SpanModel
from selfspan_core.model_store import DEFAULT_ADAPTERS, DEFAULT_BASE
from selfspan_core.protocol import Markers, PromptLayout
from selfspan_core.provenance import provenance, weights_digest
from selfspan_core.tasks import get_task
from selfspan_core.tracker import MAX_READS, Tracker
from training.arithmetic_data import evaluation_set
from training.replay import Recorded, Recording, Replay, record

SHAPES = {
    # hidden, intermediate, layers, heads, key/value heads, vocabulary
    "tiny": (128, 256, 2, 2, 1, 8192),
    "7B": (4096, 11008, 32, 32, 32, 32000),
    "Llama-3-8B": (4096, 14336, 32, 32, 8, 128256),
    "13B": (5120, 13824, 40, 40, 40, 32000),
    "33B": (6656, 17920, 60, 52, 52, 32000),
    "65B": (8192, 22016, 80, 64, 64, 32000),
}
ADAPTERS = {"span": "arithmetic-span", "plain": "arithmetic-plain"}
STRIDE = 16
FIXED_CONTEXT = 2048
FIXED_STEPS = 12
LONG_DENSITIES = (0.1, 0.25, 0.5)
ROOM_FOR_THE_REST = 4e9
KINDS = {
    "attention": ("selfspan_attention",),
    "tracker, planning, sampling": ("selfspan_track", "selfspan_plan", "selfspan_advance", "selfspan_sample"),
    "norms, rotary, activation, embedding": ("add_rms_norm", "rotary_write", "gated_silu", "index", "gather"),
    "weights": ("gemm", "gemv", "cutlass", "xmma", "splitk", "nvjet", "dot_kernel", "reduce_1block"),
}


@dataclass(frozen=True)
class Machine:
    """Where the benchmark runs: bytes per second that a kernel which only reads gets, and bytes of memory."""

    device: torch.device
    bytes_per_second: float
    memory_bytes: float


# ---- models


def random_weights(shape: str, device: torch.device, max_context: int) -> DecodeWeights:
    """A model of a named shape with random weights, bfloat16 on CUDA."""
    hidden, intermediate, layers, heads, kv_heads, vocab = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=max_context,
        tie_word_embeddings=False,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with torch.device(device):
            return DecodeWeights(SpanModel(LlamaForCausalLM(config)))
    finally:
        torch.set_default_dtype(before)


def kv_bytes(weights: DecodeWeights) -> int:
    """Keys and values of one token over all layers."""
    model = weights.model
    element = torch.empty(0, dtype=model.dtype).element_size()
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * element


def make_cache(weights: DecodeWeights, machine: Machine, batch: int, capacity: int) -> tuple[KVCache, int] | None:
    """A cache, and how many layers share each of its layers: as few as the device's memory allows; None: not even 4."""
    model = weights.model
    whole = kv_bytes(weights) * batch * capacity
    for shared in (1, 2, 4):
        if whole / shared + weights.num_bytes + ROOM_FOR_THE_REST < machine.memory_bytes:
            layers = model.num_layers // shared
            cache = KVCache(layers, model.num_kv_heads, model.head_dim, capacity, model.dtype, model.device, batch)
            # Finite numbers: what a cache holds before it is written may be anything.
            for tensor in (*cache.keys, *cache.values):
                tensor.normal_()
            cache.keys, cache.values = cache.keys * shared, cache.values * shared
            return cache, shared
    return None


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
        "span-dense": Lane(weights, markers, cache, chosen["span"], is_dense=True),
        "span-sparse": Lane(weights, markers, cache, chosen["span"], is_dense=False),
        "plain-dense": Lane(weights, markers, cache, chosen["plain"], is_dense=True),
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


class Lane:
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
        self._replay = Replay(weights, markers, len(recordings), cache.capacity, is_dense, cache=cache)
        self._recordings = recordings
        self._visible = [one.num_visible(markers, is_dense) for one in recordings]
        for row, one in enumerate(recordings):
            self._replay.place(row, one)
        self._at = 0
        self._timers: list[tuple[int, object]] = []
        # The last id never becomes a query.
        self._lengths = [len(one.ids) - 1 for one in recordings]
        self.longest = max(self._lengths)

    def sample(self, stride: int) -> None:
        """The next steps, the last of them with the model."""
        if self._at + stride > self.longest:
            return
        self._replay.move(stride - 1)
        self._timers.append((self._at + stride - 1, self._replay.step()))
        self._at += stride

    def figures(self, machine: Machine, stride: int) -> dict:
        """Means over the steps in which all rows are active, and the time to a row's answer."""
        seconds = {at: timer.seconds() for at, timer in self._timers}
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
    recording = Recording(PromptLayout(context - 1, 1, {}), (text,) * (FIXED_STEPS + 4), annotated=False)
    attentions: dict[str, Attend | None] = {"this kernel": None}
    for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
        attentions[name] = torch_attention(cache, context, backend)
    times: dict[str, object] = {}
    for name, attend in attentions.items() if machine.device.type == "cuda" else [("this kernel", None)]:
        try:
            replay = Replay(weights, markers, batch, cache.capacity, is_dense=True, cache=cache, attend=attend)
            for row in range(batch):
                replay.place(row, recording)
            timers = [replay.step() for _ in range(FIXED_STEPS)]
            times[name] = 1000 * statistics.median(timer.seconds() for timer in timers[2:])
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
    return Recording(PromptLayout(context, 16, segments), (*header, *[text] * num_body), annotated=True)


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
        replay = Replay(weights, markers, batch, cache.capacity, is_dense=density is None, cache=cache)
        for row in range(batch):
            replay.place(row, recording)
        replay.move(num_header + 2)
        timers = [replay.step() for _ in range(num_body - 4)]
        ms = 1000 * statistics.median(timer.seconds() for timer in timers[2:])
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
    """Kernels of a step by kind, and what the host calls to launch steps."""
    from torch.profiler import ProfilerActivity, profile

    batch, num_steps = len(recordings), 8
    capacity = max(one.layout.num_tokens + len(one.ids) for one in recordings)
    made = make_cache(weights, machine, batch, capacity)
    if made is None:
        return {"batch": batch, "unavailable": f"{batch} x {capacity} tokens do not fit"}
    lane = Lane(weights, markers, made[0], recordings, is_dense=False)
    replay = lane._replay
    replay.move(min(len(one.ids) for one in recordings) // 2)
    replay.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(num_steps):
            replay.launch()
        torch.cuda.synchronize()
    micros: Counter = Counter()
    calls: Counter = Counter()
    for event in profiled.key_averages():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            micros[kind_of(event.key)] += event.self_device_time_total / num_steps
        elif event.key.startswith(("cuda", "cu")):
            calls[event.key] += event.count
    kernels = sum(micros.values())
    return {
        "batch": batch,
        "microseconds_per_step": dict(micros.most_common()),
        "share": {kind: value / kernels for kind, value in micros.most_common()},
        "host_calls": {"steps": num_steps, "calls": dict(calls.most_common())},
    }


def kind_of(kernel: str) -> str:
    """What a kernel does, by its name."""
    return next((kind for kind, parts in KINDS.items() if any(part in kernel.lower() for part in parts)), "the rest")


# ---- the shipped model


def shipped_weights(adapter: str, device: torch.device) -> DecodeWeights:
    """The shipped base with a shipped adapter, in 16 bits on CUDA."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return DecodeWeights(SpanModel.load(DEFAULT_BASE, DEFAULT_ADAPTERS / ADAPTERS[adapter], str(device), dtype))


def record_all(
    shipped: dict[str, DecodeWeights], operands: int, num: int, batch: int, seed: int
) -> tuple[dict[str, Recorded], dict]:
    """What the shipped models write for fresh expressions, three lanes; and their answers checked."""
    task = get_task("arithmetic")
    problems = evaluation_set(operands, num, seed)
    made, right = {}, {}
    for lane, adapter, attention in (
        ("plain-dense", "plain", "dense"),
        ("span-dense", "span", "dense"),
        ("span-sparse", "span", "sparse"),
    ):
        weights = shipped[adapter]
        tokenizer, annotated = weights.model.tokenizer, adapter == "span"
        prompts = [task.render(problem, tokenizer, annotated) for problem in problems]
        engine = BatchEngine(weights, tokenizer.markers, batch, weights.model.max_context, attention)
        made[lane] = record(engine, prompts, annotated)
        texts = [tokenizer.decode(list(one.ids)) for one in made[lane].recordings]
        answers = [task.answer(text.replace(tokenizer.decode([tokenizer.markers.eos]), "")) for text in texts]
        right[lane] = sum(task.check(problem, answer) for problem, answer in zip(problems, answers, strict=True))
        del engine
    return made, right


@torch.inference_mode()
def ties(weights: DecodeWeights, markers: Markers, recordings: Sequence[Recording], prompts: Sequence) -> dict:
    """Where the model's own forward, under a mask of what each token sees, would have written another id.

    One forward pass per text. Such a place is a tie if the two logits are as near as rounding moves them.
    """
    from training.drafts import DraftReader

    model = weights.model
    tokens, gaps = 0, []
    for recording, prompt in zip(recordings, prompts, strict=True):
        start = recording.layout.num_tokens
        ids = [*prompt.ids[:start], *recording.ids]
        tracker = Tracker(markers, recording.layout, recording.annotated)
        visible = [((0, p + 1),) for p in range(start)] + [tracker.push(token).visible for token in recording.ids]
        most = max(map(len, visible))
        bounds = torch.tensor([[*one, *[(0, 0)] * (most - len(one))] for one in visible], device=model.device)
        keys = torch.arange(len(ids), device=model.device)
        mask = ((bounds[:, :, :1] <= keys) & (keys < bounds[:, :, 1:])).any(1)[None, None]
        on_device = torch.tensor([ids], device=model.device)
        hidden = model.hf.get_decoder()(
            input_ids=on_device,
            position_ids=torch.arange(len(ids), device=model.device)[None],
            use_cache=False,
            reader=DraftReader(mask),
        ).last_hidden_state
        logits = weights.head(hidden[0, start - 1 : -1]).float()
        written = on_device[0, start:]
        best, own = logits.max(-1).values, logits.gather(1, written[:, None])[:, 0]
        tokens += len(written)
        gaps += (best - own)[best > own].tolist()
    return {"tokens": tokens, "other": len(gaps), "largest_gap": max(gaps, default=0.0), "gaps": sorted(gaps)[-20:]}


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


# ---- the whole run


class Results:
    """The results file, written anew after every part: what is cut off leaves what was done."""

    def __init__(self, path: Path, head: dict) -> None:
        self._path, self._content = path, head | {"shapes": {}}
        self._started = time.perf_counter()

    def add(self, name: str, value: object) -> None:
        """A part of its own."""
        self._content[name] = value
        self._write(name, value)

    def add_cell(self, shape: str, part: str, cell: dict) -> None:
        """One more cell of a shape."""
        self._content["shapes"].setdefault(shape, {}).setdefault(part, []).append(cell)
        self._write(f"{shape} {part}", cell)

    def _write(self, name: str, value: object) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(rounded(self._content), indent=1) + "\n", encoding="utf-8")
        print(f"{time.perf_counter() - self._started:6.1f} s  {name}: {json.dumps(rounded(value))[:900]}", flush=True)


def rounded(value: object) -> object:
    """The same with numbers of six digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value


def measure_shipped(arguments: argparse.Namespace, results: Results, device: torch.device) -> dict:
    """The shipped model's own speed and answers; what it wrote is replayed afterwards, per number of operands."""
    shipped = {adapter: shipped_weights(adapter, device) for adapter in ADAPTERS}
    markers = shipped["span"].model.tokenizer.markers
    task = get_task("arithmetic")
    replays, answers, same = {}, {}, {}
    for operands in arguments.operands:
        made, right = record_all(shipped, operands, arguments.num, arguments.record_batch, arguments.seed)
        replays[operands] = {
            name: made[f"{name}-{'sparse' if name == 'span' else 'dense'}"].recordings for name in ADAPTERS
        }
        answers[operands] = {
            lane: {"right": right[lane], "n": arguments.num, "tokens_per_second": one.tokens_per_second}
            for lane, one in made.items()
        }
        prompts = [
            task.render(problem, shipped["span"].model.tokenizer, True)
            for problem in evaluation_set(operands, arguments.num, arguments.seed)
        ]
        sparse = made["span-sparse"].recordings
        same[operands] = ties(shipped["span"], markers, sparse, prompts)
        if operands == arguments.operands[0]:
            few = prompts[: arguments.alone]
            engine = BatchEngine(shipped["span"], markers, 1, shipped["span"].model.max_context)
            alone = record(engine, few, True).recordings
            same[operands]["alone_and_in_a_batch"] = {
                "n": len(few),
                "same_text": sum(a.ids == b.ids for a, b in zip(alone, sparse, strict=False)),
            }
    results.add("answers", {"batch": arguments.record_batch, "operands": answers})
    results.add("same_tokens", {"attention": "self-selected, against one forward of the model's own", "operands": same})
    speed = []
    for batch in arguments.shipped_batches:
        num = max(8, 2 * batch)
        made, _ = record_all(shipped, arguments.operands[-1], num, batch, arguments.seed + 1)
        speed.append({"batch": batch, "n": num} | {lane: one.tokens_per_second for lane, one in made.items()})
    digests = {adapter: weights_digest(DEFAULT_ADAPTERS / name) for adapter, name in ADAPTERS.items()}
    results.add("shipped", {"operands": arguments.operands[-1], "speed": speed, "weights_sha256": digests})
    return {"markers": markers, "replays": replays}


def measure_shape(shape: str, arguments: argparse.Namespace, results: Results, machine: Machine, shipped: dict) -> None:
    """All cells of one shape."""
    if 2 * parameters(shape) + ROOM_FOR_THE_REST > machine.memory_bytes:
        results.add_cell(
            shape, "replay", {"unavailable": f"{2 * parameters(shape) / 1e9:.0f} GB of weights do not fit"}
        )
        return
    markers, replays = shipped["markers"], shipped["replays"]
    weights = random_weights(shape, machine.device, 1 + max(4096, *(context for context, _ in arguments.long), 4096))
    for cell in cells(shape, arguments, weights, markers, machine, replays):
        results.add_cell(shape, *cell())
        empty_cache(machine)


def parameters(shape: str) -> int:
    """Of a named shape."""
    hidden, intermediate, layers, heads, kv_heads, vocab = SHAPES[shape]
    head_dim = hidden // heads
    return layers * (2 * hidden * head_dim * (heads + kv_heads) + 3 * hidden * intermediate) + 2 * vocab * hidden


def empty_cache(machine: Machine) -> None:
    """Between two cells."""
    if machine.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def cells(
    shape: str,
    arguments: argparse.Namespace,
    weights: DecodeWeights,
    markers: Markers,
    machine: Machine,
    replays: dict,
) -> Iterator[Callable[[], tuple[str, dict]]]:
    """What is measured of a shape, in turn: (part, cell)."""
    for batch in arguments.fixed_batches if "fixed" in arguments.parts else ():
        yield lambda batch=batch: ("fixed", fixed_cell(weights, markers, machine, batch, arguments.fixed_context))
    for operands in arguments.operands if "replay" in arguments.parts else ():
        for batch in arguments.batches:
            yield lambda o=operands, b=batch: (
                "replay",
                {"operands": o} | replay_cell(weights, markers, machine, replays[o], b, arguments.stride),
            )
    for context, batch in arguments.long if "long" in arguments.parts else ():
        yield lambda c=context, b=batch: ("long", long_cell(weights, markers, machine, b, c))
    if "profile" in arguments.parts and machine.device.type == "cuda":
        recordings = list(itertools.islice(itertools.cycle(replays[arguments.operands[0]]["span"]), 32))
        yield lambda: ("profile", profile_cell(weights, markers, machine, recordings))
    if "transformers" in arguments.parts and machine.device.type == "cuda":
        for batch, static in ((1, False), (32, False), (1, True)):
            yield lambda b=batch, s=static: ("transformers", transformers_cell(weights, b, arguments.fixed_context, s))


def find_machine(device: torch.device) -> Machine:
    """The device with its limits. A CPU has none here: it only rehearses."""
    if device.type != "cuda":
        return Machine(device, 1e10, 8e9)
    from cuda_kernels.bench import read_stream_tb_per_s

    rate = 1e12 * read_stream_tb_per_s()
    torch.cuda.empty_cache()
    return Machine(device, rate, torch.cuda.mem_get_info(device)[0])


def long_of(text: str) -> tuple[int, int]:
    """`32768x4` -> (32768, 4)."""
    context, batch = text.split("x")
    return int(context), int(batch)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", default=["7B", "Llama-3-8B", "13B", "33B", "65B"], choices=list(SHAPES))
    parts = ("fixed", "replay", "long", "profile", "transformers")
    parser.add_argument("--parts", nargs="*", default=parts, choices=parts)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32, 64, 128])
    parser.add_argument("--fixed-batches", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--fixed-context", type=int, default=FIXED_CONTEXT)
    parser.add_argument("--operands", type=int, nargs="+", default=[24, 48, 64])
    parser.add_argument("--long", type=long_of, nargs="*", default=[(8192, 16), (32768, 4), (32768, 16)])
    parser.add_argument("--num", type=int, default=500, help="expressions per number of operands")
    parser.add_argument("--alone", type=int, default=24, help="of them, decoded once more one at a time")
    parser.add_argument("--record-batch", type=int, default=128)
    parser.add_argument("--shipped-batches", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--stride", type=int, default=STRIDE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else None, choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="default: assets/results/engine_<gpu>.json")
    arguments = parser.parse_args(argv)
    if arguments.device is None:
        parser.error("no CUDA device; --device cpu rehearses with tiny sizes (--shapes tiny)")
    if min([1, *arguments.batches, arguments.stride, arguments.num, arguments.record_batch]) < 1:
        parser.error("numbers are 1 or more")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    arguments = parse_arguments(argv)
    device = torch.device(arguments.device)
    machine = find_machine(device)
    gpu = torch.cuda.get_device_name(device).removeprefix("NVIDIA ") if device.type == "cuda" else "cpu"
    name = "".join(c if c.isalnum() else "_" for c in gpu.lower())
    out = arguments.out or Path(f"assets/results/engine_{name}.json")
    head = {"read_stream_tb_per_s": machine.bytes_per_second / 1e12, "seed": arguments.seed, "stride": arguments.stride}
    results = Results(out, head | provenance())
    shipped = measure_shipped(arguments, results, device)
    for shape in arguments.shapes:
        measure_shape(shape, arguments, results, machine, shipped)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
