"""One answer by the batch engine, alone or among others: its events as from the engine of one sequence.

On CUDA the batch engine's step is a captured graph, hence the name; elsewhere the same code runs step by step, which
is for tests: whether a device can capture is asked in `attention.backends`, not here.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Literal

import torch

from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.decode_loop import DecodeLoop
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.drafters import Paced
from selfspan_core.engine.events import Event, Failed, Finished, OtherRows, Prefilled, Token
from selfspan_core.engine.request import PromptRequest
from selfspan_core.errors import ImplUnavailable
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.params import Drafts
from selfspan_core.spans.protocol import Markers

Attention = Literal["dense", "sparse"]


class BatchEngines:
    """The batch engines of one model, kept between runs: making one takes longer than many an answer.

    Of each attention it keeps one of a single row and one of several, for each place of rules (the host, the step,
    nowhere), with drafts and without, and one for headers that see an index, no more: each has a cache of its own.

    Args:
        weights: the model's.
        markers: its tokenizer's marker ids.
    """

    def __init__(self, weights: DecodeWeights, markers: Markers) -> None:
        self._weights, self._markers = weights, markers
        self._engines: dict[tuple[str, bool, str, bool], BatchEngine] = {}

    def get(self, attention: Attention, batch: int, num_positions: int, request: PromptRequest) -> BatchEngine:
        """The engine of `batch` rows of at least `num_positions`; a new one if the one that is kept does not serve.

        Args:
            attention: "dense" or "sparse".
            batch: rows.
            num_positions: least positions of each.
            request: what it has to be able to do: keep rules, verify drafts.

        Raises:
            ImplUnavailable: the step does not take this model, or the rows do not fit the device's memory.
        """
        drafts = _drafts_of(request)
        with_rules, with_device_rules = request.host_rules is not None, request.device_rules is not None
        with_index = attention == "sparse" and request.sees_index
        kind = "host" if with_rules else "device" if with_device_rules else "index" if with_index else "none"
        key = (attention, batch > 1, kind, drafts != "off")
        kept = self._engines.get(key)
        # A device that failed once may serve again: a lost engine is not asked a second time.
        is_another = kept is not None and (kept.batch, kept.drafts) != (batch, drafts)
        if kept is None or kept.is_lost or is_another or kept.capacity < num_positions:
            self._engines.pop(key, None)  # before the new one takes its memory
            capacity = row_capacity(num_positions, self._weights.model.max_context)
            is_dense = attention == "dense"
            shape = BatchShape(batch, capacity, is_dense, with_rules, drafts, with_device_rules, with_index)
            engine = self._made(shape)
            if engine is None and self._drop_others(key):
                engine = self._made(shape)
            if engine is None:
                raise ImplUnavailable(_no_memory(shape))
            self._engines[key] = engine
        return self._engines[key]

    def _made(self, shape: BatchShape) -> BatchEngine | None:
        """A new engine; None where the device has no memory for it."""
        try:
            return BatchEngine(self._weights, self._markers, shape)
        except ValueError as error:
            raise ImplUnavailable(f"decoding in a captured graph: {error}") from error
        except torch.OutOfMemoryError:
            return None

    def _drop_others(self, key: tuple[str, bool, str, bool]) -> bool:
        """Give up what is kept of the same attention: no run of it goes on while another begins. Whether any was."""
        others = [other for other in self._engines if other[0] == key[0]]
        for other in others:
            del self._engines[other]
        return bool(others)


def _no_memory(shape: BatchShape) -> str:
    rows = "the cache of one row" if shape.batch == 1 else f"the caches of {shape.batch} rows"
    return f"decoding in a captured graph: no memory on the device for {rows} of {shape.capacity:,} tokens"


def _drafts_of(request: PromptRequest) -> Drafts:
    """What a batch has to verify for a request."""
    drafter, most = request.drafter, None
    if drafter is None:
        return "off"
    if isinstance(drafter, DeviceDrafts):
        most = drafter.most
    elif isinstance(drafter, Paced):
        most = drafter.limit
    return "auto" if most is None else most


def row_capacity(num_positions: int, max_context: int) -> int:
    """The next power of two, so that a slightly longer prompt finds room in the engine of the one before."""
    return min(1 << (num_positions - 1).bit_length(), max_context)


def events_of_first(loop: DecodeLoop, requests: Iterable[PromptRequest]) -> Iterator[Event]:
    """The events of the first request, and what the others cost meanwhile; ends with the first, whatever is left.

    The Tokens of the first request carry the step's time, so the lane's clock advances once per step and not once per
    row. Ids that the other rows drew in it, and their prefills, are reported as OtherRows.

    Raises:
        Exception: what a request failed of, be it the first or another: with a row less it would be another load.
    """
    num_told = 0  # ids reported of the others
    with closing(loop.generate(requests)) as events:
        for number, event in events:
            if isinstance(event, Failed):
                raise event.error
            if number > 0:
                if isinstance(event, Prefilled):
                    yield OtherRows(0, event.seconds)
                continue
            if isinstance(event, Token):
                num_others = loop.num_step_tokens - loop.num_row_tokens[0]
                if num_others > num_told:
                    yield OtherRows(num_others - num_told, 0.0)
                    num_told = num_others
            yield event
            if isinstance(event, Finished):
                return
