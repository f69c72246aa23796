"""The decode loop over a batch that decides on the device: what serves many requests at once."""

from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.batch_step import BatchStep
from selfspan_core.engine.decode_loop import DecodeLoop
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.protocol import Markers


class BatchEngine(DecodeLoop):
    """Answers requests in so many rows at a time.

    Args:
        weights: the model's.
        markers: its tokenizer's marker ids.
        shape: of the batch; a capacity of at most the model's context.

    Attributes:
        drafts: of the shape.

    Raises:
        ValueError: an argument that makes no sense.
        ImplUnavailable: on CUDA, the kernels cannot serve this model.
        torch.OutOfMemoryError: the cache does not fit.
    """

    def __init__(self, weights: DecodeWeights, markers: Markers, shape: BatchShape) -> None:
        if shape.batch < 1:
            raise ValueError(f"batch is 1 or more, not {shape.batch}")
        if not 2 <= shape.capacity <= weights.model.max_context:
            raise ValueError(f"capacity is 2 to {weights.model.max_context} for this model, not {shape.capacity}")
        self.drafts = shape.drafts
        super().__init__(BatchStep(weights, markers, shape))
