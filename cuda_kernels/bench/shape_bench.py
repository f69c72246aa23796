"""Time of one shape's attention: this kernel and its peers, over the same inputs."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn.attention import SDPBackend

from cuda_kernels.attention import SpanAttention
from cuda_kernels.bench import peers
from cuda_kernels.bench.benchmark import microseconds
from cuda_kernels.bench.selections import Selection, choose, kept_blocks
from cuda_kernels.bench.shapes import DENSITIES, MAX_SETS, Shape, num_sets
from cuda_kernels.checks import AttentionShape

# Greatest error of an answer against float32: it is rounded to bfloat16, and values are at most about 4.
TOLERANCE = 0.03


class ShapeBench:
    """One shape's inputs, and the time of every implementation on them.

    Args:
        shape: what is measured.
        seed: of values and intervals.
        replays: per figure.
        least_density: lowest density that is measured; decides with the shape on the number of sets of inputs.
        max_sets: most sets of inputs.
    """

    def __init__(
        self,
        shape: Shape,
        seed: int,
        replays: int,
        least_density: float = min(DENSITIES),
        max_sets: int = MAX_SETS,
    ) -> None:
        self.shape, self.replays = shape, replays
        self.generator = torch.Generator("cuda").manual_seed(seed)
        self.sets = [self._tensors() for _ in range(num_sets(shape, least_density, max_sets))]

    def _tensors(self) -> peers.Tensors:
        shape = self.shape
        make = lambda heads, *rest: torch.randn(  # noqa: E731
            shape.batch, heads, *rest, shape.head_dim, generator=self.generator, device="cuda", dtype=torch.bfloat16
        )
        cache = (shape.num_kv_heads, shape.context)
        return peers.Tensors(make(shape.num_heads), make(*cache), make(*cache))

    def microseconds(self, calls: Sequence[Callable[[], object]]) -> float:
        """Median time of one call, of which there is one per set."""
        return microseconds(calls, self.replays)

    def dense(self) -> dict:
        """PyTorch's dense attention by the two backends that serve decoding."""
        backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
        figures = {}
        for name, backend in backends.items():
            calls = [peers.sdpa_dense(one, backend) for one in self.sets]
            figures[name] = attempt(lambda calls=calls: {"us": self.microseconds(calls)})
        return figures

    def ours(self, selection: Selection, density: float) -> dict:
        """The kernel on fresh intervals, with and without planning."""
        shape = self.shape
        tables = [choose(selection, density, shape.batch, shape.context, self.generator) for _ in self.sets]
        kernels = [self._kernel_for(table) for table in tables]
        outs = [torch.empty_like(one.query) for one in self.sets]
        attend = [_call(*x) for x in zip(kernels, self.sets, outs, strict=True)]
        plan = [_plan(one, table, shape.context) for one, table in zip(kernels, tables, strict=True)]
        both = [_in_turn(*pair) for pair in zip(plan, attend, strict=True)]
        visible = statistics.fmean(float((table[0][..., 1] - table[0][..., 0]).sum()) for table in tables)
        num_spans = tables[0][0].shape[1]
        num_bytes = shape.cache_bytes(visible) + shape.vector_bytes + 8 * num_spans * shape.batch
        # Alone, with its plan, the plan alone; and once more.
        us, us_with_plan, plan_us = (
            min(pair)
            for pair in zip(*([self.microseconds(x) for x in (attend, both, plan)] for _ in range(2)), strict=True)
        )
        self._check(outs[0], tables[0][0])
        return {
            "us": us,
            "us_with_plan": us_with_plan,
            "plan_us": plan_us,
            "kept": visible / (shape.batch * shape.context),
            "spans_per_row": num_spans,
            "bytes": num_bytes,
        }

    def _kernel_for(self, table: tuple[torch.Tensor, torch.Tensor]) -> SpanAttention:
        shape = self.shape
        kernel = SpanAttention(
            AttentionShape(
                batch=shape.batch,
                num_heads=shape.num_heads,
                num_kv_heads=shape.num_kv_heads,
                head_dim=shape.head_dim,
                max_spans=table[0].shape[1],
            )
        )
        kernel.plan(*table, shape.context)
        return kernel

    def flex(self, selection: Selection, density: float) -> dict:
        """FlexAttention over the same kind of blocks, in the faster of two ways to say which."""
        kept = [self._blocks(selection, density) for _ in self.sets]
        ways = [
            attempt(lambda way=way: {"us": self.microseconds(peers.flex(self.sets, kept, selection, way))})
            for way in (False, True)
        ]
        return min(ways, key=lambda figures: figures.get("us", math.inf))

    def _check(self, out: torch.Tensor, intervals: torch.Tensor) -> None:
        """Compare the first set's first and last row with attention by PyTorch in float32."""
        one = self.sets[0]
        for row in (0, self.shape.batch - 1):
            starts, ends = intervals[row].long().unbind(-1)
            before = (ends - starts).cumsum(0) - (ends - starts)
            seen = torch.repeat_interleave(starts - before, ends - starts)
            seen += torch.arange(len(seen), device="cuda")
            keys, values = one.keys[row, :, seen].float(), one.values[row, :, seen].float()
            query = one.query[row].float().unflatten(0, (self.shape.num_kv_heads, -1))
            scores = torch.einsum("hgd,htd->hgt", query, keys) * self.shape.head_dim**-0.5
            expected = torch.einsum("hgt,htd->hgd", scores.softmax(-1), values).flatten(0, 1)
            error = (out[row].float() - expected).abs().max().item()
            if not error < TOLERANCE:
                raise AssertionError(f"row {row} of {self.shape.name} is off by {error}")

    def flashinfer(self, selection: Selection, density: float) -> dict:
        """FlashInfer over the same kind of pages, the faster of its kernels, and what planning takes on the host.

        Both are tried for every grouping; one that refuses it does not count.
        """
        figures = [self._flashinfer(selection, density, tensor_cores) for tensor_cores in (True, False, True, False)]
        return min(figures, key=lambda one: one.get("us", math.inf))

    def _flashinfer(self, selection: Selection, density: float, tensor_cores: bool) -> dict:
        blocks = [self._blocks(selection, density) for _ in self.sets]

        def measure() -> dict:
            made = [
                peers.flashinfer(one, kept, selection.tokens, tensor_cores)
                for one, kept in zip(self.sets, blocks, strict=True)
            ]
            made[0].plan()  # compiles
            plans = []
            for one in made:
                torch.cuda.synchronize()
                begin = time.perf_counter()
                one.plan()
                torch.cuda.synchronize()
                plans.append(1e6 * (time.perf_counter() - begin))
            us = self.microseconds([one.run for one in made])
            starts = blocks[0] * selection.tokens
            self._check(made[0].run(), torch.stack([starts, starts + selection.tokens], -1))
            return {"us": us, "plan_us": statistics.median(plans), "tensor_cores": tensor_cores}

        return attempt(measure)

    def _blocks(self, selection: Selection, density: float) -> torch.Tensor:
        return kept_blocks(selection, density, self.shape.batch, self.shape.context, self.generator)


def _call(kernel: SpanAttention, one: peers.Tensors, out: torch.Tensor) -> Callable[[], object]:
    return lambda: kernel(one.query, one.keys, one.values, out=out)


def _plan(kernel: SpanAttention, table: tuple[torch.Tensor, torch.Tensor], context: int) -> Callable[[], object]:
    return lambda: kernel.plan(*table, context)


def _in_turn(first: Callable[[], object], second: Callable[[], object]) -> Callable[[], object]:
    def both() -> None:
        first()
        second()

    return both


def sooner_of_two(ways: Mapping[str, Callable[[], dict]]) -> dict[str, dict]:
    """Figures of every way (`us`: microseconds), measured in turn, twice: the faster ones, or why there are none."""
    found: dict[str, dict] = {}
    for _ in range(2):
        for name, way in ways.items():
            one = attempt(way)
            if one.get("us", math.inf) <= found.get(name, one).get("us", math.inf):
                found[name] = one
            torch.cuda.empty_cache()
    return found


def attempt(measure: Callable[[], dict]) -> dict:
    """Figures, or why there are none: a peer that is missing or refuses a case does not end the benchmark."""
    try:
        return measure()
    except Exception as error:  # a peer's errors are of any kind
        return {"unavailable": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}
