"""One answer by the batch engine, alone or among others: its events as from the engine of one sequence.

On CUDA the batch engine's step is a captured graph, hence the name; elsewhere the same code runs step by step, which
is for tests: whether a device can capture is asked in `attention.backends`, not here.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing

import torch

from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.events import Event, Failed, Finished, OtherRows, Prefilled, Token
from selfspan_core.engine.request import PromptRequest
from selfspan_core.errors import ImplUnavailable
from selfspan_core.models.model import SpanModel
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.protocol import Markers


class BatchEngines:
    """The batch engines of one model, kept between runs: making one takes longer than many an answer.

    Of each attention it keeps one of a single row and one of several, no more: each has a cache of its own.

    Args:
        model: the model.
        markers: its tokenizer's marker ids.
    """

    def __init__(self, model: SpanModel, markers: Markers) -> None:
        self._model, self._markers = model, markers
        self._weights: DecodeWeights | None = None
        self._engines: dict[tuple[str, bool], BatchEngine] = {}

    def get(self, attention: str, batch: int, num_positions: int) -> BatchEngine:
        """The engine of `batch` rows of at least `num_positions`; made anew where what there is does not do.

        Raises:
            ImplUnavailable: the step does not take this model, or the rows do not fit the device's memory.
        """
        key = (attention, batch > 1)
        if not self._does(key, batch, num_positions):
            self._engines.pop(key, None)  # before the new one takes its memory
            self._engines[key] = self._make(attention, batch, row_capacity(num_positions, self._model.max_context))
        return self._engines[key]

    def _does(self, key: tuple[str, bool], batch: int, num_positions: int) -> bool:
        kept = self._engines.get(key)
        # A device that failed once may serve again: a lost engine is made anew.
        return kept is not None and not kept.is_lost and kept.batch == batch and kept.capacity >= num_positions

    def _make(self, attention: str, batch: int, capacity: int) -> BatchEngine:
        try:
            if self._weights is None:
                self._weights = DecodeWeights(self._model)
            return BatchEngine(self._weights, self._markers, batch, capacity, attention)
        except ValueError as error:
            raise ImplUnavailable(f"decoding in a captured graph: {error}") from error
        except torch.OutOfMemoryError as error:
            rows = "the cache of one row" if batch == 1 else f"the caches of {batch} rows"
            raise ImplUnavailable(
                f"decoding in a captured graph: no memory on the device for {rows} of {capacity:,} tokens"
            ) from error


def row_capacity(num_positions: int, max_context: int) -> int:
    """The next power of two, so that a slightly longer prompt finds room in the engine of the one before."""
    return min(1 << (num_positions - 1).bit_length(), max_context)


def events_of_first(engine: BatchEngine, requests: Iterable[PromptRequest]) -> Iterator[Event]:
    """The events of the first request, and what the others cost meanwhile; ends with the first, whatever is left.

    A step is one Token of the first request, whose `step_ms` is the step's, so the lane's clock advances once per step
    and not once per row. Ids that the other rows drew in it, and their prefills, are reported as OtherRows.

    Raises:
        Exception: what a request failed of, be it the first or another: with a row less it would be another load.
    """
    num_tokens = num_told = 0  # ids of the first request; ids reported of the others
    with closing(engine.generate(requests)) as events:
        for number, event in events:
            if isinstance(event, Failed):
                raise event.error
            if number > 0:
                if isinstance(event, Prefilled):
                    yield OtherRows(0, event.seconds)
                continue
            if isinstance(event, Token):
                num_tokens += 1
                # The first id is the prefill's, no step's.
                num_others = engine.num_step_tokens - (num_tokens - 1)
                if num_others > num_told:
                    yield OtherRows(num_others - num_told, 0.0)
                    num_told = num_others
            yield event
            if isinstance(event, Finished):
                return
