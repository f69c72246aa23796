"""Declared spans in vLLM at full size: `python -m training.bench_vllm` -> assets/results/vllm_<gpu>.json.

Physics. A decode step reads every weight once, and of keys and values what its queries see; vLLM adds what its host
does for a step, in all lanes alike: beside the step before with asynchronous scheduling, between the two without. What
bytes say of a lane is the ratio of what it and dense attention read.

Method. The shipped small model writes answers to expressions; their ids are forced through models of published shapes
with random weights inside vLLM, all requests of a cell at once. Lanes of one vLLM: plain text dense; text with names
dense; text with names self-selected. A vLLM without the plugin writes the second one, too. Steps are timed by the wall
clock, from one call of the engine's `step` to its return, which waits for the ids; medians are over steps in which
every request is decoded.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfspan_core.models.marker_ids import CONFIG_KEY, said_in_config
from selfspan_core.serve.vllm_plugin import support
from selfspan_core.serve.vllm_plugin.plugin import register
from selfspan_core.serve.vllm_plugin.settings import SpanSettings
from selfspan_core.spans.protocol import Markers
from training.bench.forced import FORCED, KEY
from training.bench.replay import Recording
from training.bench.results import Results, add_device, begin_results, check_out, count, find_machine, free_memory
from training.bench.shapes import SHAPES, parameters
from training.bench.texts import Text, expressions, weights_of

SEED = 2024
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
LANES = {"plain dense": (False, "dense"), "span dense": (True, "dense"), "span sparse": (True, "sparse")}
"""Name: whether it writes names, and its attention."""
WITHOUT_PLUGIN = ("span dense",)


@dataclass(frozen=True)
class Cell:
    """A text, and how many requests of it are decoded at once."""

    text: Text
    batch: int

    def recordings(self, with_names: bool) -> list[Recording]:
        """One per request."""
        return list(itertools.islice(itertools.cycle(self.text.span if with_names else self.text.plain), self.batch))


def write_model(shape: str, markers: Markers, max_context: int) -> Path:
    """A folder with the settings of a shape and no weights, for vLLM's dummy ones."""
    hidden, intermediate, layers, heads, kv_heads, vocab = SHAPES[shape]
    folder = Path(tempfile.mkdtemp(prefix=f"{shape}-"))
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": max_context,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": markers.bos,
        "eos_token_id": markers.eos,
        CONFIG_KEY: said_in_config(markers),
    }
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def started(folder: Path, arguments: argparse.Namespace, max_context: int, with_plugin: bool) -> Any:
    """A vLLM with random weights."""
    import vllm

    return vllm.LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=max_context,
        max_num_seqs=max(arguments.batches),
        logits_processors=[FORCED, *([support.SPAN_REQUESTS] if with_plugin else [])],
        **scheduling(arguments.scheduling, with_plugin),
        enable_prefix_caching=False,
        tensor_parallel_size=arguments.gpus,
        block_size=arguments.page_size,
        gpu_memory_utilization=0.9,
    )


def scheduling(kind: str, with_plugin: bool) -> dict[str, Any]:
    """Settings of a vLLM whose host plans a step while the one before runs ("async"), or behind it ("sync")."""
    is_async = kind == "async"
    worker = {"worker_cls": support.SPAN_WORKER} if is_async and with_plugin else {}
    return {"async_scheduling": is_async, **worker}


def decoded(llm: Any, recordings: Sequence[Recording], attention: str | None) -> dict[str, float]:
    """All requests at once: median of a step in which every one is decoded, and mean time from first id to last."""
    import vllm

    engine = llm.llm_engine
    for number, one in enumerate(recordings):
        extra: dict[str, Any] = {KEY: list(one.ids)}
        if attention is not None:
            extra |= SpanSettings.of_prompt(attention, one.layout).to_extra_args()
        params = vllm.SamplingParams(
            temperature=0, max_tokens=len(one.ids), ignore_eos=True, detokenize=False, extra_args=extra
        )
        engine.add_request(str(number), {"prompt_token_ids": list(one.prompt)}, params)
    num_written = [0] * len(recordings)
    begun, ends, steps = 0.0, [0.0] * len(recordings), []
    while engine.has_unfinished_requests():
        before = time.perf_counter()
        outputs = engine.step()
        now = time.perf_counter()
        grown = 0
        for output in outputs:
            number, length = int(output.request_id), len(output.outputs[0].token_ids)
            grown += length > num_written[number] > 0
            num_written[number] = length
            if output.finished:
                ends[number] = now
        begun = begun or (now if all(num_written) else 0.0)
        if grown == len(recordings):
            steps.append(now - before)
    return {
        "ms_per_step": 1000 * statistics.median(steps),
        "seconds_to_answer": statistics.fmean(end - begun for end in ends),
        "tokens": statistics.fmean(num_written),
        "steps": len(steps),
    }


def reads(recordings: Sequence[Recording], markers: Markers, is_dense: bool) -> float:
    """Tokens read by a step in which every request is decoded; the mean."""
    shortest = min(len(one.ids) for one in recordings) - 1
    return sum(sum(one.num_visible(markers, is_dense)[:shortest]) for one in recordings) / shortest


def operands_of(batch: int, arguments: argparse.Namespace) -> int:
    """Of the expressions that so many requests solve: the longest whose cache fits at the 7B shape, if none is said."""
    return arguments.operands or (64 if batch < 128 else 48)


def measure(arguments: argparse.Namespace, results: Results, device: torch.device) -> None:
    """All cells of all shapes."""
    markers = weights_of("arithmetic-span", torch.device("cpu")).model.tokenizer.markers
    texts = {
        operands: expressions(operands, arguments.num, arguments.seed, device)
        for operands in sorted({operands_of(batch, arguments) for batch in arguments.batches})
    }
    cells = [Cell(texts[operands_of(batch, arguments)], batch) for batch in arguments.batches]
    longest = 64 + max(len(one.prompt) + len(one.ids) for cell in cells for one in (*cell.text.span, *cell.text.plain))
    for shape in arguments.shapes:
        folder, found = write_model(shape, markers, longest), [{} for _ in cells]
        for with_plugin in (False, True):
            llm = started(folder, arguments, longest, with_plugin)
            for cell, lanes in zip(cells, found, strict=True):
                for lane, (with_names, attention) in LANES.items():
                    if with_plugin:
                        lanes[lane] = decoded(llm, cell.recordings(with_names), attention)
                    elif lane in WITHOUT_PLUGIN:
                        lanes[f"{lane}, vLLM alone"] = decoded(llm, cell.recordings(with_names), None)
                if with_plugin:
                    results.add_cell(shape, "decoding", figures(cell, lanes, shape, markers))
                print(shape, cell.text.name, cell.batch, lanes, flush=True)
            llm.llm_engine.engine_core.shutdown()
            del llm
            free_memory(find_machine(device))


def figures(cell: Cell, lanes: dict[str, dict], shape: str, markers: Markers) -> dict:
    """A cell's lanes, and what bytes say of them."""
    hidden, _, layers, heads, kv_heads, vocab = SHAPES[shape]
    # Of the embedding a step reads a few rows only.
    per_token, weights = 4 * layers * kv_heads * (hidden // heads), 2 * (parameters(shape) - vocab * hidden)
    span = cell.recordings(True)
    dense, sparse = (weights + per_token * reads(span, markers, is_dense) for is_dense in (True, False))
    speedup = lanes["span dense"]["ms_per_step"] / lanes["span sparse"]["ms_per_step"]
    to_answer = lanes["plain dense"]["seconds_to_answer"] / lanes["span sparse"]["seconds_to_answer"]
    return {
        "text": cell.text.name,
        "batch": cell.batch,
        "lanes": lanes,
        "speedup": speedup,
        "speedup_predicted_by_bytes": dense / sparse,
        "share_of_predicted": speedup / (dense / sparse),
        "to_answer": to_answer,
        "dense_over_vllm_alone": lanes["span dense"]["ms_per_step"] / lanes["span dense, vLLM alone"]["ms_per_step"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["7B", "Llama-3-8B"], choices=list(SHAPES), help="of models")
    parser.add_argument("--batches", type=count, nargs="+", default=[32, 64, 128], help="requests at once")
    parser.add_argument("--operands", type=count, help="of the expressions (default: 64; from 128 requests on, 48)")
    parser.add_argument("--num", type=count, default=32, help="texts")
    parser.add_argument("--gpus", type=count, default=1, help="tensor parallelism")
    parser.add_argument("--page-size", type=count, default=16, help="tokens of a page of vLLM's cache")
    parser.add_argument("--scheduling", default="async", choices=("async", "sync"), help="of steps by vLLM")
    parser.add_argument("--seed", type=int, default=SEED)
    add_device(parser)
    parser.add_argument("--out", type=Path, help="default: assets/results/vllm_<gpu>.json")
    arguments = parser.parse_args(argv)
    if arguments.device != "cuda":
        parser.error("this is measured on a GPU")
    check_out(parser, arguments.out)
    os.environ.update(ENVIRONMENT)
    register()
    device = torch.device(arguments.device)
    results, out = begin_results(
        arguments,
        "vllm",
        find_machine(device),
        {"clock": "host", "page_size": arguments.page_size, "scheduling": arguments.scheduling},
    )
    measure(arguments, results, device)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
