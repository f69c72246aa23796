"""Dense against self-selected decoding on this CPU: `python -m selfspan_core.bench_cpu`.

Physics: one decode step does about two operations per byte that it reads, and a core does many more operations than
it can fetch bytes, so the time of a step is bytes over bandwidth. The bytes are

    every weight once (the embedding table counts as the output layer)  +  keys and values of the visible tokens

and only the second part depends on attention. So sparse attention can save at most the share of keys and values in
all bytes: little at 512 tokens of context, most of the growth at 4096. The floor printed beside each time is those
bytes over the bandwidth at which this machine reads a large tensor; the rest is the cost of small operations.

Method: worked arithmetic examples are replayed (same tokens forced through both lanes, so both write headers and
bodies of the real protocol), around each context length. The lanes take turns token by token in one run, so that
neither gets the quieter minute. Each window is replayed several times: `ms_per_token` is the mean over the window's
tokens, gathers and headers included, of each token's best time (the work is the same in every replay; what a replay
adds is other processes), `ms_per_token_median` the plain median over all tokens of all replays. Run it on an otherwise
idle machine; the load average at the start is recorded.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import place, write_whole
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Event, Token
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.model import SpanModel
from selfspan_core.models.places import place_of_base
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.spans.protocol import Markers, PromptLayout
from selfspan_core.spans.render import Example, Rendered, VisibleRun, render
from selfspan_core.spans.tracker import Phase, Tracker
from selfspan_core.tasks.arithmetic.task import random_problem
from selfspan_core.tasks.registry import get_task

BASE = Path("assets/base")
RESULT = Path("assets/results/cpu_engine.json")
CONTEXTS = (512, 1024, 2048, 4096)
SINGLE = (16, 24, 32, 48)
PAIR = 62
LANES = ("dense", "sparse")


@dataclass(frozen=True)
class Window:
    """A stretch of a worked example to replay: `prompt` is all that comes before it, at a step boundary."""

    prompt: Rendered
    forced: list[int]


def worked_example(context: int, tokenizer: SpanTokenizer, rng: random.Random) -> Rendered:
    """A worked example of at least `context` tokens: one expression, or two in one prompt where one is too short."""
    for operands in (*SINGLE, *[PAIR] * 100):
        examples = [numbered_example(operands, 0, tokenizer, rng)]
        if operands == PAIR:
            offset = len(tokenizer.markers.anchors) // 2
            examples.append(numbered_example(PAIR, offset, tokenizer, rng))
        parts = tuple(part for example in examples for part in example.parts)
        steps = tuple(step for example in examples for step in example.steps)
        rendered = render(Example(examples[0].scaffold, parts, steps), tokenizer.markers)
        if len(rendered.ids) >= context:
            return rendered
    raise ValueError(f"no worked example of {context} tokens was found")


def numbered_example(operands: int, offset: int, tokenizer: SpanTokenizer, rng: random.Random) -> Example:
    """A random worked expression that takes at most half of the names, from `offset` on."""
    task, half = get_task("arithmetic"), len(tokenizer.markers.anchors) // 2
    while True:
        example = task.example(random_problem(rng, operands), tokenizer, offset, with_steps=True)
        if sum(part.name is not None for part in example.parts) + len(example.steps) <= half:
            return example


def window_before(context: int, size: int, rendered: Rendered, markers: Markers) -> Window:
    """The last `size` tokens or so before a context length, from the start of a step on."""
    start = rendered.prompt.num_tokens
    tracker = Tracker(markers, rendered.prompt)
    layout = PromptLayout(start, rendered.prompt.scaffold_end, rendered.prompt.segments)
    for position, token in enumerate(rendered.ids[start : context - size], start=start):
        if tracker.push(token).phase is Phase.BETWEEN:
            layout = PromptLayout(position + 1, rendered.prompt.scaffold_end, dict(tracker.segments))
    prompt = Rendered(rendered.ids[: layout.num_tokens], layout, [0] * layout.num_tokens, [VisibleRun(0, (), 0)])
    return Window(prompt, rendered.ids[layout.num_tokens : context])


def next_token(events: Iterator[Event]) -> Token | None:
    """The next Token event, or None when the run is over."""
    return next((event for event in events if isinstance(event, Token)), None)


def replay(engine: Engine, window: Window) -> dict[str, list[Token]]:
    """Both lanes over one window, taking turns token by token, each going first every other time."""
    runs = {lane: engine.generate(PromptRequest(window.prompt, forced_tokens=window.forced), lane) for lane in LANES}
    tokens: dict[str, list[Token]] = {lane: [] for lane in LANES}
    for turn in range(len(window.forced)):
        for lane in LANES if turn % 2 else reversed(LANES):
            tokens[lane].append(next_token(runs[lane]))
    return tokens


def lane_figures(replays: list[list[Token]], bytes_per_token: int) -> dict:
    """Figures of one lane from its replays; the first token of a run costs no forward and is left out."""
    drawn = [tokens[1:] for tokens in replays]
    times = [min(token.step_ms for token in same) for same in zip(*drawn, strict=True)]
    # The forward that drew token i is the query of token i - 1: its phase and visible count explain the time.
    queries = replays[0][:-1]
    body = [ms for ms, query in zip(times, queries, strict=True) if query.phase is Phase.BODY]
    visible = statistics.mean(query.num_visible for query in queries)
    return {
        "ms_per_token": round(statistics.mean(times), 3),
        "ms_per_token_median": round(statistics.median(token.step_ms for tokens in drawn for token in tokens), 3),
        "ms_per_body_token": round(statistics.mean(body), 3),
        "kv_tokens_read": round(visible, 1),
        "kv_bytes_read": round(visible * bytes_per_token),
    }


def weight_bytes(model: SpanModel) -> int:
    """Bytes of weights that one decode step reads; an untied embedding table is not among them (one row is read)."""
    embedding, output = model.hf.get_input_embeddings().weight, model.hf.get_output_embeddings().weight
    total = sum(parameter.numel() * parameter.element_size() for parameter in model.hf.parameters())
    return total - (embedding.numel() * embedding.element_size() if embedding is not output else 0)


def read_bandwidth(num_bytes: int = 2**29) -> float:
    """Bytes per second at which this machine reads a tensor far larger than its caches."""
    tensor = torch.ones(num_bytes // 4)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        tensor.sum()
        seconds.append(time.perf_counter() - started)
    return num_bytes / min(seconds)


def measure(engine: Engine, context: int, window: Window, replays: int, bandwidth: float) -> dict:
    """Figures of both lanes at one context length."""
    runs = [replay(engine, window) for _ in range(replays)]
    per_token = engine.model.new_cache(1).bytes_per_token
    lanes = {lane: lane_figures([run[lane] for run in runs], per_token) for lane in LANES}
    weights = weight_bytes(engine.model)
    for figures in lanes.values():
        figures["floor_ms"] = round(1000 * (weights + figures["kv_bytes_read"]) / bandwidth, 3)
    dense, sparse = lanes["dense"], lanes["sparse"]
    return {
        "context": context,
        "tokens_measured": len(window.forced) - 1,
        **lanes,
        "dense_over_sparse": round(dense["ms_per_token"] / sparse["ms_per_token"], 3),
        "dense_over_sparse_median": round(dense["ms_per_token_median"] / sparse["ms_per_token_median"], 3),
        "visible_share": round(sparse["kv_tokens_read"] / dense["kv_tokens_read"], 3),
    }


def load_model(base: Path, random_weights: bool, tokenizer: SpanTokenizer, seed: int) -> SpanModel:
    """The shipped base, or a random model of its shape: weights do not change how long a step takes."""
    if not random_weights:
        return SpanModel.load(base, None, "cpu", torch.float32, tokenizer)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=384,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        intermediate_size=1024,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    return SpanModel(LlamaForCausalLM(config), tokenizer)


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=BASE, help="folder of the base model and its tokenizer")
    parser.add_argument("--random-weights", action="store_true", help="a random model of the shipped shape")
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--window", type=int, default=256, help="tokens measured up to each context length")
    parser.add_argument("--replays", type=int, default=5)
    parser.add_argument("--threads", type=int, help="PyTorch threads (default: PyTorch's own choice)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--before",
        type=Path,
        metavar="FILE",
        help="results of another commit on this machine, to keep beside the new ones",
    )
    parser.add_argument("--output", type=place, default=RESULT)
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    load_average = os.getloadavg()[0]
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tokenizer = SpanTokenizer.load(place_of_base(arguments.base))
    model = load_model(arguments.base, arguments.random_weights, tokenizer, arguments.seed)
    engine = Engine(model, tokenizer.markers)
    bandwidth = read_bandwidth()
    weights = weight_bytes(model)
    print(f"weights {weights / 1e6:.1f} MB per token, read bandwidth {bandwidth / 1e9:.1f} GB/s")
    print("context  dense ms (floor)   sparse ms (floor)   dense/sparse  visible share")
    rows = []
    for context in arguments.contexts:
        rendered = worked_example(context, tokenizer, random.Random(arguments.seed))
        window = window_before(context, arguments.window, rendered, tokenizer.markers)
        row = measure(engine, context, window, arguments.replays, bandwidth)
        dense, sparse = row["dense"], row["sparse"]
        print(
            f"{context:7d}  {dense['ms_per_token']:8.2f} ({dense['floor_ms']:5.2f})   "
            f"{sparse['ms_per_token']:8.2f} ({sparse['floor_ms']:5.2f})   "
            f"{row['dense_over_sparse']:12.3f}  {row['visible_share']:13.3f}",
            flush=True,
        )
        rows.append(row)
    result = {
        **provenance(),
        "seed": arguments.seed,
        "weights": "random" if arguments.random_weights else "shipped base",
        "dtype": "float32",
        "clock": "host",
        "replays": arguments.replays,
        "load_average_at_start": round(load_average, 2),
        "weight_bytes_per_token": weights,
        "kv_bytes_per_position": model.new_cache(1).bytes_per_token,
        "read_bandwidth_gb_per_s": round(bandwidth / 1e9, 2),
        "contexts": rows,
    }
    if arguments.before is not None:
        before = json.loads(arguments.before.read_text(encoding="utf-8"))
        result["before"] = {name: before[name] for name in ("commit", "dirty", "command", "machine", "contexts")}
    write_whole(arguments.output, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
