"""The decode loop over a batch that decides on the device: what serves many requests at once."""

from typing import Literal

from selfspan_core.engine.batch_step import BatchShape, BatchStep
from selfspan_core.engine.decode_loop import DecodeLoop
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.protocol import Markers


class BatchEngine(DecodeLoop):
    """Answers requests in so many rows at a time.

    Args:
        weights: the model's.
        markers: its tokenizer's marker ids.
        batch: rows.
        capacity: positions of each row, prompt and answer together; at most the model's context.
        attention: "dense" or "sparse".
        with_rules: whether requests may have rules; the step then looks at a table of what each row may write.

    Raises:
        ValueError: an argument that makes no sense.
        ImplUnavailable: on CUDA, the kernels cannot serve this model.
        torch.OutOfMemoryError: the cache does not fit.
    """

    def __init__(
        self,
        weights: DecodeWeights,
        markers: Markers,
        batch: int,
        capacity: int,
        attention: Literal["dense", "sparse"] = "sparse",
        with_rules: bool = False,
    ) -> None:
        if attention not in ("dense", "sparse"):
            raise ValueError(f"attention is 'dense' or 'sparse', not {attention!r}")
        if batch < 1:
            raise ValueError(f"batch is 1 or more, not {batch}")
        if not 2 <= capacity <= weights.model.max_context:
            raise ValueError(f"capacity is 2 to {weights.model.max_context} for this model, not {capacity}")
        super().__init__(BatchStep(weights, markers, BatchShape(batch, capacity, attention == "dense", with_rules)))
