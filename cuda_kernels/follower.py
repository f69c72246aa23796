"""The tracker on the device for steps whose rows come and go: state in slots, of which a step goes on with some.

`tracker.SpanTracker` is for batches whose rows stay where they are and all take in one id per step.
"""

import numpy as np
import torch

from cuda_kernels.checks import check_tensor
from cuda_kernels.compile import load
from cuda_kernels.device import cuda_device
from cuda_kernels.launcher import Launcher, pointers
from cuda_kernels.tracker import THREADS, Grammar


class SpanFollower:
    """States and launcher.

    Args:
        grammar: the protocol's numbers.
        num_slots: sequences whose state is kept.
        device: a CUDA device.

    Raises:
        CudaUnavailable: no CUDA device, or CuPy is missing.
    """

    def __init__(self, grammar: Grammar, num_slots: int, device: torch.device | str = "cuda") -> None:
        self.grammar, self.num_slots, self.device = grammar, num_slots, cuda_device(device)
        self._follow = load("tracker.cu", "selfspan_follow", grammar.macros(), self.device.index)
        self._launch = Launcher(self.device)
        self._kinds = grammar.kinds().to(self.device)
        self._tracks = torch.zeros(num_slots, grammar.track_words, dtype=torch.int32, device=self.device)
        self._segments = torch.zeros(num_slots, len(grammar.anchors), 2, dtype=torch.int32, device=self.device)

    def set(self, slot: int, track: torch.Tensor, segments: torch.Tensor) -> None:
        """Begin a sequence in a slot, with the state made by `Grammar.start`."""
        self._tracks[slot].copy_(track, non_blocking=True)
        self._segments[slot].copy_(segments, non_blocking=True)

    def push(self, ids: torch.Tensor, queries: torch.Tensor, intervals: torch.Tensor, counts: torch.Tensor) -> None:
        """Push one id for each of N queries; writes the intervals that they see, as the attention kernels plan them.

        Args:
            ids: int32 `[M]`, among which those of the queries stand.
            queries: int32 `[3, N]`: where each query's id stands; whose state it goes on with, no two the same, or -1
                for one that reads everything; and the tokens that such a one reads, 0 for padding.
            intervals: int32 `[N, max_spans, 2]`, max_spans at least `grammar.max_intervals`; is written.
            counts: int32 `[N]`; is written.

        Raises:
            ValueError: a wrong argument, named.
        """
        num = counts.shape[0] if isinstance(counts, torch.Tensor) and counts.dim() == 1 else 0
        spans = intervals.shape[1] if isinstance(intervals, torch.Tensor) and intervals.dim() == 3 else 0
        check_tensor("counts", counts, (num,), torch.int32, self.device, contiguous=True)
        check_tensor("intervals", intervals, (num, spans, 2), torch.int32, self.device, contiguous=True)
        if spans < self.grammar.max_intervals:
            raise ValueError(f"intervals has room for {spans} a query, and {self.grammar.max_intervals} are needed")
        check_tensor("queries", queries, (3, num), torch.int32, self.device, contiguous=True)
        check_tensor("ids", ids, tuple(ids.shape[:1]), torch.int32, self.device, contiguous=True)
        arguments = (
            *pointers(ids, *queries, self._kinds),
            np.int32(self.grammar.vocab_size),
            *pointers(self._tracks, self._segments),
            np.int32(num),
            *pointers(intervals),
            np.int32(spans),
            *pointers(counts),
        )
        self._launch(self._follow, -(-num // THREADS), THREADS, arguments)
