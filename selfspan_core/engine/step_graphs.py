"""Work on a device that is captured once as CUDA graphs and replayed; elsewhere it runs as it stands."""

import statistics
from collections.abc import Callable, Hashable

import torch

from selfspan_core.engine.step import Timer

Work = Callable[[], None]
NUM_TIMED = 3
"""Replays of which the median counts."""


class StepGraphs:
    """Graphs by key, which share the memory of what they compute on the way: one runs at a time.

    What a graph leaves for others to read has to be kept by a reference, or lie in memory from elsewhere.

    Args:
        device: where the work runs.
        is_captured: whether it is captured.
    """

    def __init__(self, device: torch.device, is_captured: bool) -> None:
        self._device, self._is_captured = device, is_captured
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if is_captured else None

    @torch.inference_mode()
    def warm_up(self, work: Work) -> None:
        """What has to happen once before a capture: it runs twice, beside the current stream."""
        if not self._is_captured:
            return
        stream, current = torch.cuda.Stream(self._device), torch.cuda.current_stream(self._device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(2):
                work()
        current.wait_stream(stream)

    @torch.inference_mode()
    def run(self, key: Hashable, work: Work) -> None:
        """Replay the graph of a key; where there is none yet it is captured, which runs nothing. Waits for nothing.

        The work's kernels must have run before.
        """
        if not self._is_captured:
            work()
            return
        if key not in self._graphs:
            graph = torch.cuda.CUDAGraph()
            # Another thread may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
            self._graphs[key] = graph
        self._graphs[key].replay()

    def seconds(self, key: Hashable, work: Work) -> float | None:
        """Of a replay; None where nothing is captured."""
        if not self._is_captured:
            return None
        timers = []
        for _ in range(NUM_TIMED + 1):  # the first captures
            timers.append(Timer(self._device))
            self.run(key, work)
            timers[-1].stop()
        return statistics.median(timer.seconds() for timer in timers[1:])
