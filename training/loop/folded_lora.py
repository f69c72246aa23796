"""LoRA as one product per layer: W + s B A is formed first, then multiplied with the input.

PEFT computes W x + s B (A x): two thin products and an addition over the whole batch. For a small model and a large
batch those cost as much as the layer itself, while W + s B A is tiny. Parameters, saving and merging stay PEFT's.
"""

from types import MethodType

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import Linear

ADAPTER = "default"


def fold_lora(model: PeftModel) -> int:
    """Replace the forward of every LoRA linear layer of a PEFT model; returns how many there are.

    Raises:
        ValueError: a layer uses what cannot be folded: dropout, a LoRA variant, several adapters.
    """
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    for layer in layers:
        dropout = layer.lora_dropout[ADAPTER]
        has_dropout = isinstance(dropout, torch.nn.Dropout) and dropout.p > 0
        if has_dropout or layer.use_dora[ADAPTER] or len(layer.lora_A) > 1:
            raise ValueError("only plain LoRA without dropout can be folded")
        layer.forward = MethodType(_folded_forward, layer)
    return len(layers)


def _folded_forward(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    delta = layer.lora_B[ADAPTER].weight @ layer.lora_A[ADAPTER].weight
    weight = layer.base_layer.weight + layer.scaling[ADAPTER] * delta
    return F.linear(x, weight, layer.base_layer.bias)
