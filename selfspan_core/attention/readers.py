"""Readers: attention over the KV cache, for decoding. Work that all layers or tokens share is done once.

A reader is planned once per forward pass on the host (`plan`) and run once per layer (`attend`). The reader decides
where new keys and values are stored and which keys a query reads. A pass holds the prompt, or one or several tokens at
consecutive positions: the token that was drawn last, and drafts behind it that are to be verified. Every token's keys
and values go to the cache; a pass that starts before the end of the last one overwrites the drafts that were rejected.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from cuda_kernels.attention import SpanAttention
from cuda_kernels.checks import AttentionShape
from cuda_kernels.device import CudaUnavailable
from selfspan_core.attention.backends import require_impl
from selfspan_core.attention.fused import LastQueries, causal_attention
from selfspan_core.attention.impls import IMPLS
from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.attention.reference import masked_attention, visibility_mask
from selfspan_core.errors import ImplUnavailable
from selfspan_core.spans.intervals import Interval
from selfspan_core.spans.tracker import MAX_BODY_TOKENS, State


class Reader(Protocol):
    """The attention of a forward pass: decides where new keys and values are stored and which keys a query reads."""

    def plan(self, start: int, states: Sequence[State] | None) -> None:
        """Prepare for a forward pass of tokens from position `start` on.

        Args:
            start: position of the first token.
            states: the tracker's state for every token, or None for the prompt or a piece of it (every token seeing all
                tokens before it). A body must not read a segment that ends behind `start`.
        """

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store one layer's new keys and values, and attend.

        Args:
            layer: index of the layer.
            query: `[1, num_heads, T, head_dim]`.
            key, value: `[1, num_kv_heads, T, head_dim]`, rotary embedding applied.
            scale: multiplies the scores.

        Returns:
            `[1, num_heads, T, head_dim]`.
        """


class DenseReader:
    """Every query reads everything before it, through PyTorch's fused attention."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._start = 0
        self._is_prompt = True
        self._attention = LastQueries()

    def plan(self, start: int, states: Sequence[State] | None) -> None:
        """See Reader."""
        self._start, self._is_prompt = start, states is None
        self._attention = LastQueries()

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Reader."""
        self._cache.write(layer, self._start, key, value)
        if self._is_prompt and self._start == 0:
            return causal_attention(query, key, value, scale)
        keys, values = self._cache.first(layer, self._start + query.shape[2])
        return self._attention(query, keys, values, scale)


class ReferenceReader:
    """The reference for the other readers: attention with an explicit mask over all keys, in float32."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._start = 0
        self._states: Sequence[State] | None = None

    def plan(self, start: int, states: Sequence[State] | None) -> None:
        """See Reader."""
        self._start, self._states = start, states

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Reader."""
        self._cache.write(layer, self._start, key, value)
        end = self._start + query.shape[2]
        if self._states is None:
            visibility: list[Sequence[Interval]] = [((0, p + 1),) for p in range(self._start, end)]
        else:
            visibility = [state.visible for state in self._states]
        keys, values = self._cache.first(layer, end)
        return masked_attention(query, keys, values, visibility_mask(visibility, end), scale)


class CudaReader:
    """The CUDA kernel reads the visible intervals in the cache itself, for headers and bodies alike.

    It takes one query; the queries of a pass of several tokens are launched one after the other.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._dense = DenseReader(cache)
        self._start = 0
        self._states: Sequence[State] | None = None
        self._kernels: list[SpanAttention] = []
        self._is_planned = False

    def plan(self, start: int, states: Sequence[State] | None) -> None:
        """See Reader."""
        self._start, self._states, self._is_planned = start, states, False
        self._dense.plan(start, states)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Reader."""
        if self._states is None:
            return self._dense.attend(layer, query, key, value, scale)
        cache = self._cache
        cache.write(layer, self._start, key, value)
        if not self._is_planned:  # the first layer plans for all: the number of query heads is known here
            self._plan_kernels(query.shape[1], self._states)
        keys, values = cache.keys[layer], cache.values[layer]
        out = [
            kernel(query[:, :, place].contiguous(), keys, values, scale)[:, :, None]
            for place, kernel in enumerate(self._kernels[: query.shape[2]])
        ]
        return out[0] if len(out) == 1 else torch.cat(out, 2)

    def _plan_kernels(self, num_heads: int, states: Sequence[State]) -> None:
        for place, state in enumerate(states):
            num_spans = len(state.visible)
            if place == len(self._kernels):
                self._kernels.append(cuda_attention(num_heads, self._cache.keys[0], max(16, 2 * num_spans)))
            elif num_spans > self._kernels[place].shape.max_spans:
                self._kernels[place] = cuda_attention(num_heads, self._cache.keys[0], 2 * num_spans)
            plan_visible(self._kernels[place], state.visible, self._cache.capacity)
        self._is_planned = True


class GatherReader:
    """Body tokens read only the keys and values that their step may see, from a small contiguous workspace.

    The first body token of a step gathers what its body may see, the step's own header included, into a workspace. The
    tokens of the step are appended there as they come, and bodies read nothing else. Headers, and whatever else sees
    everything, read the cache.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._start = 0
        self._dense = DenseReader(cache)
        self._bodies: list[_Body] = []
        self._groups: list[_Group] | None = None

    def plan(self, start: int, states: Sequence[State] | None) -> None:
        """See Reader."""
        self._start = start
        self._dense.plan(start, states)
        for gathered in self._bodies:
            gathered.forget(start)
        self._groups = None
        if states is None or all(state.sees_everything for state in states):
            return
        used: list[_Body] = []
        groups: list[_Group] = []
        for place, state in enumerate(states):
            key = None if state.sees_everything else (state.context, state.own_start)
            if groups and groups[-1].key == key:
                groups[-1].last = place + 1
                continue
            body = None if key is None else self._body_of(state, start, used)
            groups.append(_Group(key, place, place + 1, body))
        self._groups, self._bodies = groups, used or self._bodies

    def _body_of(self, state: State, start: int, used: "list[_Body]") -> "_Body":
        """The workspace of a body, gathered unless it is open already; `used` holds those of this pass."""
        free = [one for one in self._bodies if one not in used]
        holding = [one for one in free if one.holds(state, start)]
        body = [*holding, *free, _Body(self._cache)][0]
        if not holding:
            body.gather(state, start)
        used.append(body)
        return body

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Reader."""
        if self._groups is None:
            return self._dense.attend(layer, query, key, value, scale)
        self._cache.write(layer, self._start, key, value)
        out = [self._attend_group(group, layer, query, key, value, scale) for group in self._groups]
        return out[0] if len(out) == 1 else torch.cat(out, 2)

    def _attend_group(
        self, group: "_Group", layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        if len(self._groups or ()) > 1:
            query = query[:, :, group.first : group.last]
        if group.body is None:
            keys, values = self._cache.first(layer, self._start + group.last)
        else:
            keys, values = group.body.append(layer, self._start, key[:, :, : group.last], value[:, :, : group.last])
        return group.attention(query, keys, values, scale)


@dataclass
class _Group:
    """Tokens `[first, last)` of a pass that read one thing: a body's workspace, or (None) the cache."""

    key: tuple[tuple[Interval, ...], int] | None
    first: int
    last: int
    body: "_Body | None"
    attention: LastQueries = field(default_factory=LastQueries)


class _Body:
    """A step's workspace: what its body sees before its own step, then the step itself."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._key: tuple[tuple[Interval, ...], int] | None = None
        self._workspace: KVCache | None = None
        # Where the step starts, in the cache and in the workspace; and the cache position up to which it is here.
        self._own_start = self._offset = self._end = 0

    def holds(self, state: State, start: int) -> bool:
        """Whether it holds all that this body sees before the pass that starts at `start`."""
        return self._key == (state.context, state.own_start) and (self._end >= start or self._own_start >= start)

    def forget(self, start: int) -> None:
        """A pass starts at `start`: what stood behind were drafts, and others may take their places."""
        self._end = min(self._end, start)

    def gather(self, state: State, start: int) -> None:
        """Take in what a body sees of the cache, up to the pass that starts at `start`."""
        if state.context and state.context[-1][1] > start:
            raise RuntimeError("a body reads a segment that is written in the same forward pass")
        capacity = self._cache.capacity
        needed = min(state.num_visible + MAX_BODY_TOKENS + 1, capacity)
        if self._workspace is None or self._workspace.capacity < needed:
            # Doubling: the workspace has the size of what steps read, not of the context, and seldom grows.
            grown = 0 if self._workspace is None else 2 * self._workspace.capacity
            self._workspace = self._cache.like(min(max(needed, grown), capacity))
        self._key, self._own_start = (state.context, state.own_start), state.own_start
        self._offset = self._workspace.copy_from(self._cache, state.context)
        if state.own_start < start:
            self._workspace.copy_from(self._cache, [(state.own_start, start)], self._offset)
        self._end = start

    def append(
        self, layer: int, start: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a pass's tokens, those of the step among them; keys and values of all that the last of them sees."""
        assert self._workspace is not None
        before = max(0, self._own_start - start)  # tokens of the pass that are not the step's
        if before:
            key, value = key[:, :, before:], value[:, :, before:]
        at = self._offset + max(start, self._own_start) - self._own_start
        self._workspace.write(layer, at, key, value)
        self._end = max(start, self._own_start) + key.shape[2]
        return self._workspace.first(layer, at + key.shape[2])


def make_reader(attention: str, impl: str, cache: KVCache, device: torch.device | str) -> Reader:
    """The reader of one lane.

    Args:
        attention: "dense" (fused attention over all keys) or "sparse" (only the tracker's intervals, by `impl`).
        impl: the sparse lane's implementation, one of IMPLS; ignored for a dense lane, which has only one.
        cache: stores the keys and values.
        device: where the model runs.

    Raises:
        ValueError: unknown `attention` or `impl`.
        ImplUnavailable: the implementation cannot run on this device.
    """
    if attention == "dense":
        return DenseReader(cache)
    if attention != "sparse":
        raise ValueError(f"attention is 'dense' or 'sparse', not {attention!r}")
    if impl not in IMPLS:
        raise ValueError(f"no implementation of attention is called {impl!r}; there are {', '.join(IMPLS)}")
    require_impl(impl, device)
    readers: dict[str, Callable[[KVCache], Reader]] = {
        "reference": ReferenceReader,
        "gather": GatherReader,
        "cuda": CudaReader,
    }
    return readers[impl](cache)


def cuda_attention(num_heads: int, keys: torch.Tensor, max_spans: int) -> SpanAttention:
    """The CUDA kernel for one sequence's cache.

    Args:
        num_heads: query heads.
        keys: `[1, num_kv_heads, capacity, head_dim]`, of the cache.
        max_spans: most intervals of a query.

    Raises:
        ImplUnavailable: the kernel does not support this element type or shape.
    """
    try:
        shape = AttentionShape(
            batch=1,
            num_heads=num_heads,
            num_kv_heads=keys.shape[1],
            head_dim=keys.shape[3],
            max_spans=max_spans,
            dtype=keys.dtype,
        )
        return SpanAttention(shape, device=keys.device)
    except (ValueError, CudaUnavailable) as error:
        raise ImplUnavailable(f"impl 'cuda': {error}") from error


def plan_visible(kernel: SpanAttention, visible: Sequence[Interval], capacity: int) -> None:
    """Plan the kernel for the intervals of one sequence. Copies from the host, which suits token-by-token decoding."""
    table = torch.zeros(1, kernel.shape.max_spans, 2, dtype=torch.int32)
    table[0, : len(visible)] = torch.tensor(visible, dtype=torch.int32)
    counts = torch.tensor([len(visible)], dtype=torch.int32)
    kernel.plan(table.to(kernel.device), counts.to(kernel.device), capacity)
