"""A language model on this CPU beside llama.cpp, on one GGUF file: `python -m selfspan_core.bench_llamacpp`.

Physics: a token reads every weight once, and the keys and values of all tokens before it. At a few operations per byte
its time cannot be less than those bytes over the bandwidth at which this machine reads memory, which is measured in the
same run. llama.cpp reads the file's own numbers, of 4 bits and their scales; this project's engine reads 8 bits, or
plain floats. A prompt's tokens share one reading of the weights: its time is that of operations.

Method: each system is a process of its own, so that the peak memory of each is known. Systems take turns, prompt by
prompt and in an order that changes, on the same ids and the same number of threads; only one works at a time. Every
prompt is computed in full. Both answer greedily; how many tokens they write alike before the first that differs shows
that they compute the same model (they round differently, so a tie may be decided otherwise). This project's side has no
drafts, no adapter and reads everything. Figures are medians of the repeats. Loading is timed several times, files in
the system's cache. llama.cpp's package is compiled for many CPUs; which instructions it uses is in the results. Run it
on an otherwise idle machine.
"""

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import place, write_whole
from selfspan_core.bench_cpu import read_bandwidth
from selfspan_core.bench_systems import LLAMACPP, SELFSPAN, SYSTEMS, WARM_UP_TOKENS, Answer
from selfspan_core.models.gguf_file import GgufFile
from selfspan_core.models.places import gguf_file_of, place_of
from selfspan_core.models.registry import GgufFrom, PublishedGguf, resolve_model
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.registry import get_task

MODEL = "smollm2-135m"
RESULT = Path("assets/results/cpu_llamacpp.json")
CONTEXTS = (500, 2000, 6000)
PACKAGE = "xllamacpp"
MISSING = f"llama.cpp is not installed, nothing is measured: pip install --no-deps {PACKAGE}"


@dataclass(frozen=True)
class Loaded:
    """What loading a system took.

    Attributes:
        start_s: seconds from the start of its process.
        import_s: of these, for importing libraries.
        load_s: of these, for everything behind that.
        peak_mb: peak memory then.
        facts: what the system says of itself.
    """

    start_s: float
    import_s: float
    load_s: float
    peak_mb: float
    facts: dict[str, Any]


class Child:
    """A system in its process; see `bench_systems`.

    Args:
        system: its name.
        arguments: of the command line behind it.

    Raises:
        RuntimeError: it ended instead of answering; with the end of what it said.
    """

    def __init__(self, system: str, arguments: Sequence[str]) -> None:
        self.system = system
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115, until `close`
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "selfspan_core.bench_systems", system, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,  # llama.cpp logs every request
            text=True,
        )
        self.loaded = Loaded(**self._read(), start_s=time.perf_counter() - started)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            raise RuntimeError(f"the process of {self.system} ended: {self._said.read()[-2000:]}")
        return json.loads(line)

    def answer(self, ids: Sequence[int], num_tokens: int) -> Answer:
        """Have a prompt answered."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"ids": list(ids), "num_tokens": num_tokens}) + "\n")
        self._process.stdin.flush()
        return Answer(**self._read())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._said.close()


def prompts(tokenizer: SpanTokenizer, contexts: Sequence[int]) -> dict[int, list[int]]:
    """Ids of a text of each length: this project's example articles, one after the other and again from the first."""
    text = "\n\n".join(get_task("summarize").examples)
    ids = tokenizer.encode(text)
    return {size: list(itertools.islice(itertools.cycle(ids), size)) for size in contexts}


def load_all(arguments: Sequence[str], times: int) -> tuple[dict[str, Child], dict[str, list[Loaded]]]:
    """Load every system so many times; the processes of the last time, and what each time took."""
    children: dict[str, Child] = {}
    loaded: dict[str, list[Loaded]] = {system: [] for system in SYSTEMS}
    for _, system in itertools.product(range(times), SYSTEMS):
        if system in children:
            children[system].close()
        children[system] = Child(system, arguments)
        loaded[system].append(children[system].loaded)
    return children, loaded


def measure(
    children: Mapping[str, Child], asked: Mapping[int, Sequence[int]], num_tokens: int, repeats: int
) -> dict[tuple[str, int], list[Answer]]:
    """Answers by system and context; systems take turns at every prompt."""
    for child in children.values():
        child.answer(asked[min(asked)][:64], WARM_UP_TOKENS)
    answers: dict[tuple[str, int], list[Answer]] = {}
    orders = itertools.cycle(itertools.permutations(children))
    for _, size in itertools.product(range(repeats), sorted(asked)):
        for system in next(orders):
            answers.setdefault((system, size), []).append(children[system].answer(asked[size], num_tokens))
    return answers


def figures(
    answers: Mapping[tuple[str, int], list[Answer]], loaded: Mapping[str, list[Loaded]], bandwidth: float
) -> dict[str, Any]:
    """What the results say of each system."""
    sizes = sorted({size for _, size in answers})
    return {
        system: {
            **times[-1].facts,
            "loading": {
                name: round(statistics.median(getattr(one, name) for one in times), 3)
                for name in ("start_s", "import_s", "load_s")
            },
            "peak_mb_loaded": round(times[-1].peak_mb, 1),
            "peak_mb": round(max(one.peak_mb for size in sizes for one in answers[system, size]), 1),
            "contexts": [
                context_figures(size, answers[system, size], answers[LLAMACPP, size], times[-1].facts, bandwidth)
                for size in sizes
            ],
        }
        for system, times in loaded.items()
    }


def context_figures(
    size: int, mine: Sequence[Answer], theirs: Sequence[Answer], facts: Mapping[str, Any], bandwidth: float
) -> dict[str, Any]:
    """A system's figures at one context, beside llama.cpp's."""
    prefill_s, ms = (
        [statistics.median(getattr(one, name) for one in answers) for answers in (mine, theirs)]
        for name in ("prefill_s", "ms_per_token")
    )
    positions = size + len(mine[0].ids) / 2
    read = facts["weight_bytes_per_token"] + facts["kv_bytes_per_position"] * positions
    return {
        "context": size,
        "prompt_tokens_per_s": round(size / prefill_s[0], 1),
        "tokens_per_s": round(1000 / ms[0], 2),
        "ms_per_token": round(ms[0], 3),
        "ms_per_token_fastest": round(min(one.ms_per_token for one in mine), 3),
        "floor_ms": round(1000 * read / bandwidth, 3),
        "prompt_over_llamacpp": round(prefill_s[1] / prefill_s[0], 3),
        "tokens_over_llamacpp": round(ms[1] / ms[0], 3),
        "tokens_written": len(mine[0].ids),
        "tokens_alike": num_alike(mine[0].ids, theirs[0].ids),
    }


def num_alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two lists have in common from their start on."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="a registered model that comes as GGUF, or a GGUF file")
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS, help="lengths of the prompts")
    parser.add_argument("--tokens", type=int, default=48, help="tokens written behind each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--loads", type=int, default=3, help="how many times each system is loaded")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=place, default=RESULT)
    arguments = parser.parse_args()
    if arguments.tokens < 2 or min(arguments.repeats, arguments.loads, arguments.threads, *arguments.contexts) < 1:
        parser.error("--tokens is at least 2, the other numbers at least 1")
    return arguments


def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    if importlib.util.find_spec(PACKAGE) is None:
        print(MISSING, file=sys.stderr)
        return
    load_average = os.getloadavg()[0]
    torch.set_num_threads(arguments.threads)
    source = resolve_model(arguments.model).source
    if not isinstance(source, GgufFrom | PublishedGguf):
        raise SystemExit(f"{arguments.model} does not come as a GGUF file, which both systems could read")
    file, tokenizer = gguf_file_of(source), SpanTokenizer.load(place_of(source))
    bandwidth, opened = read_bandwidth(), GgufFile(file)
    longest = max(arguments.contexts) + arguments.tokens
    passed = {"--model": arguments.model, "--file": file, "--threads": arguments.threads, "--context": longest}
    children, loaded = load_all([str(part) for option in passed.items() for part in option], arguments.loads)
    kv_bytes = children[SELFSPAN].loaded.facts["kv_bytes_per_position"]
    children[LLAMACPP].loaded.facts.update(weight_bytes_per_token=opened.num_bytes, kv_bytes_per_position=kv_bytes)
    answers = measure(children, prompts(tokenizer, arguments.contexts), arguments.tokens, arguments.repeats)
    for child in children.values():
        child.close()
    result = {
        **provenance(),
        "model": arguments.model,
        "file": file.name,
        "clock": "host",
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "loads": arguments.loads,
        "load_average_at_start": round(load_average, 2),
        "load_average_at_end": round(os.getloadavg()[0], 2),
        "read_bandwidth_gb_per_s": round(bandwidth / 1e9, 2),
        "systems": figures(answers, loaded, bandwidth),
    }
    show(result)
    write_whole(arguments.output, json.dumps(result, indent=2) + "\n")


def show(result: Mapping[str, Any]) -> None:
    """Print the figures."""
    print(f"read bandwidth {result['read_bandwidth_gb_per_s']} GB/s, load {result['load_average_at_start']}")
    for system, one in result["systems"].items():
        loading = one["loading"]
        print(f"{system}: loaded in {loading['load_s']:.2f} s, {loading['start_s']:.2f} from its start", end="")
        print(f"; peak {one['peak_mb_loaded']:.0f} MB loaded, {one['peak_mb']:.0f} in all")
        for row in one["contexts"]:
            print(
                f"{row['context']:7d}  prompt {row['prompt_tokens_per_s']:8.1f} tokens/s "
                f"({row['prompt_over_llamacpp']:5.2f}x)  then {row['tokens_per_s']:6.2f} "
                f"({row['tokens_over_llamacpp']:4.2f}x)  {row['ms_per_token']:6.2f} ms, floor {row['floor_ms']:5.2f}  "
                f"alike {row['tokens_alike']} of {row['tokens_written']}"
            )


if __name__ == "__main__":
    main()
