"""Common parts of the kernels' benchmarks: options, their start, the time of calls captured in a CUDA graph, and the
GPU's read bandwidth, from which the roofline of every memory-bound kernel follows."""

import argparse
import math
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import require_place
from cuda_kernels.compile import load
from cuda_kernels.device import CudaUnavailable, cuda_device
from cuda_kernels.launcher import foreign_stream

READ_STREAM_BYTES = 8 * 10**9
# Fewest calls in one graph: they share the fixed cost of a replay.
MIN_CALLS = 16
# Clock cycles for which the device is kept busy while the host hands it a graph: at least, and per kernel in it.
WAIT_CYCLES = 500_000
WAIT_CYCLES_PER_CALL = 4_000


def positive(text: str) -> int:
    """A command line's number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def add_options(parser: argparse.ArgumentParser, kind: str) -> None:
    """The options of every benchmark: `--replays`, `--seed`, `--out`. kind: as in `begin_benchmark`."""
    parser.add_argument("--replays", type=positive, default=20, help="per figure, 1 or more (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: %(default)s)")
    parser.add_argument("--out", type=Path, help=f"default: assets/results/{kind}_<gpu>.json")


def begin_benchmark(kind: str, out: Path | None) -> tuple[dict, Path, float]:
    """Begin a benchmark; without a CUDA device, or where its results cannot be written, the process ends and says why.

    Args:
        kind: of results, the beginning of their file's name.
        out: where they go; None: to `assets/results/KIND_GPU.json`.

    Returns:
        Where they come from (for the file), the path, its folder made, and the read stream in TB/s.
    """
    try:
        if out is not None:
            require_place(out)
    except OSError as error:
        sys.exit(f"error: --out: {error}")
    try:
        cuda_device("cuda")
    except CudaUnavailable as error:
        sys.exit(f"error: {error}")
    origin = provenance()
    origin["versions"] |= gpu_versions()
    gpu = re.sub(r"\W+", "_", torch.cuda.get_device_name().removeprefix("NVIDIA ")).lower()
    out = out or Path(f"assets/results/{kind}_{gpu}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    limit = read_stream_tb_per_s()
    print(f"{torch.cuda.get_device_name()}: a read stream moves {limit:.2f} TB/s", flush=True)
    return origin, out, limit


def end_benchmark(out: Path, failed: Sequence[str]) -> None:
    """Say where results are; with cases that are wrong or failed, by their lines, the process ends with an error."""
    print(f"wrote {out}")
    if failed:
        sys.exit("error: wrong or failed:\n" + "\n".join(failed))


def microseconds(calls: Sequence[Callable[[], object]], replays: int) -> float:
    """Median time of one call: the calls, one per set of inputs, are captured together and replayed so many times."""
    calls = list(calls) * math.ceil(MIN_CALLS / len(calls))
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for replay in range(replays + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        # The graph is enqueued before the device is free, so that no figure includes the host's part of a launch.
        torch.cuda._sleep(WAIT_CYCLES + WAIT_CYCLES_PER_CALL * len(calls))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 3:
            times.append(1000 * begin.elapsed_time(end) / len(calls))
    return statistics.median(times)


def read_stream_tb_per_s() -> float:
    """The bandwidth of a kernel that only reads: 8 GB, the median of eight, for the best number of blocks."""
    device = cuda_device("cuda")
    kernel = load("read_stream.cu", "selfspan_read_stream", ("-DIS_BF16=1",), device.index)
    data = torch.randint(-(2**31), 2**31 - 1, (READ_STREAM_BYTES // 4,), dtype=torch.int32, device=device)
    sink = torch.zeros(1, dtype=torch.int32, device="cuda")
    arguments = (np.uint64(data.data_ptr()), np.int64(data.numel() // 4), np.uint64(sink.data_ptr()))
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    stream = foreign_stream(torch.cuda.current_stream().cuda_stream, device)
    best = math.inf
    for blocks_per_sm in (1, 2, 3, 4):
        times = []
        for _ in range(10):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(WAIT_CYCLES)
            begin.record()
            with stream:
                kernel((blocks_per_sm * num_sms,), (512,), arguments)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        best = min(best, statistics.median(times[2:]))
    return 4 * data.numel() / best / 1e9


def gpu_versions() -> dict[str, str | int | None]:
    """Versions besides Python packages: cuDNN, and the CUDA version that the driver is made for (13000: 13.0)."""
    import cupy

    return {"cudnn": torch.backends.cudnn.version(), "cuda_of_driver": cupy.cuda.runtime.driverGetVersion()}
