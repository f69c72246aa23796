"""The systems that `bench_llamacpp` compares, each in a process of its own: `python -m selfspan_core.bench_systems`.

Such a process loads one system and then answers requests, a line of JSON each: first, unasked, what loading took; then,
for each line `{"ids": [...], "num_tokens": N}` on its standard input, an `Answer`. At the end of its input it ends. Its
peak memory is therefore that of one system alone.
"""

import argparse
import json
import os
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

LLAMACPP, SELFSPAN, FLOATS = "llama.cpp", "selfspan", "selfspan, plain floats"
SYSTEMS = (LLAMACPP, SELFSPAN, FLOATS)
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Answer:
    """One prompt, answered greedily.

    Attributes:
        ids: what was written.
        prefill_s: seconds of the prompt, up to the first token.
        ms_per_token: milliseconds of each token behind the first, on average.
        peak_mb: the process's peak memory so far, in 10^6 bytes.
    """

    ids: list[int]
    prefill_s: float
    ms_per_token: float
    peak_mb: float


class System(Protocol):
    """Something that answers prompts.

    Attributes:
        facts: what the results say of it.
    """

    facts: dict[str, Any]

    def answer(self, ids: Sequence[int], num_tokens: int) -> Answer:
        """Continue a prompt greedily, by at most so many tokens."""
        ...


class Selfspan:
    """This project's engine on a CPU: plain dense attention, no drafts, no adapter.

    Args:
        model: name, or path of a GGUF file.
        threads: of PyTorch.
        in_floats: keep matrices as plain floats, whatever the engine would choose.
    """

    def __init__(self, model: str, threads: int, in_floats: bool) -> None:
        import torch

        from selfspan_core.engine.engine import Engine
        from selfspan_core.engine.model_store import ModelStore
        from selfspan_core.models.model import SpanModel
        from selfspan_core.models.places import place_of
        from selfspan_core.models.weights import DenseStore

        torch.set_num_threads(threads)
        store = ModelStore(model, device="cpu")
        dtype, matrix = store.numbers_of(store.default)
        loaded = SpanModel.load(
            place_of(store.default.source), None, "cpu", dtype, store.tokenizer, DenseStore() if in_floats else matrix
        )
        self._engine = Engine(loaded, store.tokenizer.markers)
        numbers = str(dtype).removeprefix("torch.")
        self.facts = {
            "numbers": numbers if in_floats else store.device_name.removeprefix("CPU, "),
            "weight_bytes_per_token": loaded.weights.num_bytes,
            "kv_bytes_per_position": loaded.new_cache(1).bytes_per_token,
        }

    def answer(self, ids: Sequence[int], num_tokens: int) -> Answer:
        """See System. Seconds are of the wall clock around the engine's events."""
        from selfspan_core.engine.events import Prefilled, Token
        from selfspan_core.engine.request import PromptRequest
        from selfspan_core.params import SamplingParams
        from selfspan_core.spans.protocol import PromptLayout
        from selfspan_core.spans.render import Rendered

        prompt = Rendered(list(ids), PromptLayout(len(ids), 0, {}), [], [])
        request = PromptRequest(prompt, annotated=False, sampling=SamplingParams(num_tokens))
        written: list[int] = []
        started = prefilled = last = time.perf_counter()
        for event in self._engine.generate(request, "dense"):
            if isinstance(event, Prefilled):
                prefilled = last = time.perf_counter()
            elif isinstance(event, Token):
                written.append(event.id)
                last = time.perf_counter()
        return Answer(written, prefilled - started, _ms_per_token(last - prefilled, written), peak_mb())


class LlamaCpp:
    """llama.cpp, by the package `xllamacpp`: its own server in this process.

    Args:
        file: a GGUF file.
        threads: for prompts and for tokens.
        context: most positions.
    """

    def __init__(self, file: Path, threads: int, context: int) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.n_ctx, settings.n_parallel = context, 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        settings.n_gpu_layers, settings.warmup = 0, False
        self._server = xllamacpp.Server(settings)
        self.facts = {
            "build": str(xllamacpp.BUILD_INFO),
            "instructions": xllamacpp.get_system_info().strip(),
        }

    def answer(self, ids: Sequence[int], num_tokens: int) -> Answer:
        """See System. Seconds are of the server's own clock, without the way there and back.

        Raises:
            RuntimeError: part of the prompt was not computed, but remembered.
        """
        asked = {
            "prompt": list(ids),
            "n_predict": num_tokens,
            "temperature": 0,
            "cache_prompt": False,
            "return_tokens": True,
        }
        url = f"{self._server.listening_address}/completion"
        request = urllib.request.Request(url, json.dumps(asked).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            found = json.load(reply)
        times = found["timings"]
        if times["prompt_n"] != len(ids):
            raise RuntimeError(f"llama.cpp computed {times['prompt_n']} tokens of a prompt of {len(ids)}")
        seconds = times["predicted_ms"] / 1000  # from the first token, which comes with the prompt, to the last
        written = found["tokens"]
        return Answer(written, times["prompt_ms"] / 1000, _ms_per_token(seconds, written), peak_mb())


def _ms_per_token(seconds: float, written: Sequence[int]) -> float:
    """Milliseconds per token behind the first.

    Raises:
        RuntimeError: no token came behind it.
    """
    if len(written) < 2:
        raise RuntimeError("the answer ended at its first token")
    return 1000 * seconds / (len(written) - 1)


def peak_mb() -> float:
    """This process's peak of resident memory, in 10^6 bytes.

    Not `ru_maxrss`, which begins with what the parent had when it made this process.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def _load(arguments: argparse.Namespace) -> tuple[System, float, float]:
    """A system, and the seconds that importing its libraries and loading its model took."""
    started = time.perf_counter()
    if arguments.system == LLAMACPP:
        import xllamacpp  # noqa: F401

        imported = time.perf_counter()
        system: System = LlamaCpp(arguments.file, arguments.threads, arguments.context)
    else:
        import selfspan_core.engine.model_store  # noqa: F401, with torch and transformers

        imported = time.perf_counter()
        system = Selfspan(arguments.model, arguments.threads, arguments.system == FLOATS)
    return system, imported - started, time.perf_counter() - imported


def _serve(system: System, lines: TextIO, out: TextIO) -> None:
    for line in lines:
        asked = json.loads(line)
        out.write(json.dumps(asdict(system.answer(asked["ids"], asked["num_tokens"]))) + "\n")
        out.flush()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--model", required=True, help="a registered model that comes as GGUF, or a GGUF file")
    parser.add_argument("--file", type=Path, required=True, help="its GGUF file")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="most positions")
    arguments = parser.parse_args()
    # Libraries write to the standard output, too: what they write goes to the standard error.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    system, import_s, load_s = _load(arguments)
    out.write(json.dumps({"import_s": import_s, "load_s": load_s, "peak_mb": peak_mb(), "facts": system.facts}) + "\n")
    out.flush()
    _serve(system, sys.stdin, out)


if __name__ == "__main__":
    main()
