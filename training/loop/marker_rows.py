"""Where the rows of new markers start: at what a marker means, in pieces that the base knows.

The rows that a resized embedding gets are nearly all the same (transformers draws them closely around the mean of all
rows), so that a model first has to learn to tell 256 names apart. Here a marker starts at the mean of the rows of what
stands for it in text, a name in addition with a random part of its own, since `<|a12|>` and `<|a21|>` have the same
digits. Only where training starts is this of any matter: an adapter stores its trained rows.
"""

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer

from selfspan_core.models.tokenizer import SpanTokenizer

MEANINGS = {"ref": "[", "go": "]", "res": "=", "end": "\n"}
OWN_SHARE = 0.5
"""Standard deviation of a name's own random part, as a share of that of the base's rows."""


def meanings(tokenizer: SpanTokenizer) -> dict[int, list[int]]:
    """For each marker's id, the ids whose rows it starts from: of a bracket, a line break, or a name's digits."""
    markers = tokenizer.markers
    texts = {getattr(markers, name): text for name, text in MEANINGS.items()}
    texts |= {token: str(index) for index, token in enumerate(markers.anchors)}
    return {token: tokenizer.encode(text) for token, text in texts.items()}


def start_marker_rows(model: PeftModel, tokenizer: SpanTokenizer, seed: int = 0) -> None:
    """Set the trainable rows of the markers, in the embedding and in an output layer that is not tied to it.

    Args:
        model: with `trainable_token_indices`; changed in place. The base's own rows stay.
        seed: of the names' own parts: the same in every process.

    Raises:
        ValueError: the model trains no rows.
    """
    pieces, names = meanings(tokenizer), tokenizer.markers.anchor_index
    layers = [module for module in model.modules() if isinstance(module, TrainableTokensLayer)]
    if not layers:
        raise ValueError("the model trains no markers' rows: it was made without trainable_token_indices")
    for layer in layers:
        if layer.tied_adapter is not None:
            continue
        weight = layer.get_base_layer().weight.detach()
        rows = layer.trainable_tokens_delta["default"]
        own_std = OWN_SHARE * weight.float().std(dim=0).cpu()
        generator = torch.Generator().manual_seed(seed)
        for row, token in enumerate(layer.token_indices["default"]):
            mean = weight[pieces[token]].float().mean(dim=0).cpu()
            if token in names:
                mean += own_std * torch.randn(len(own_std), generator=generator)
            rows.data[row] = mean.to(rows)
