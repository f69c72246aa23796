"""Muon with matrices of one shape orthogonalised together.

`torch.optim.Muon` takes one matrix at a time: about 23 small kernels each, 1,300 for the shipped base, whose host
and launch time is too much for a small model's step. Here the update is the same, with batched products over stacks of
matrices.
"""

from collections import defaultdict

import torch
from torch import Tensor


class StackedMuon(torch.optim.Muon):
    """`torch.optim.Muon` (its arguments, its state, its update); wide matrices join tall ones of the same sides."""

    @torch.no_grad()
    def step(self, closure=None):
        """Performs a single optimization step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["adjust_lr_fn"] not in (None, "original"):
                raise ValueError("only Muon's original learning rate adjustment is implemented here")
            self._step_group(group)
        return loss

    def _step_group(self, group: dict) -> None:
        parameters: list[Tensor] = []
        gradients: list[Tensor] = []
        momenta: list[Tensor] = []
        self._init_group(group, parameters, gradients, momenta)
        if not parameters:
            return
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        by_sides: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, parameter in enumerate(parameters):
            by_sides[tuple(sorted(parameter.shape))].append(index)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for indices in by_sides.values():
            is_tall = [parameters[i].shape[0] > parameters[i].shape[1] for i in indices]
            wide = [directions[i].mT if tall else directions[i] for i, tall in zip(indices, is_tall, strict=True)]
            stack = orthogonalised(torch.stack(wide), group["ns_coefficients"], group["ns_steps"], group["eps"])
            for index, tall, update in zip(indices, is_tall, stack.float(), strict=True):
                rows, columns = parameters[index].shape
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                parameters[index].add_(update.mT if tall else update, alpha=-rate)


def orthogonalised(
    matrices: Tensor, coefficients: tuple[float, float, float], num_iterations: int, eps: float
) -> Tensor:
    """Newton-Schulz iterations in bfloat16 on `[N, rows, columns]`, rows <= columns: singular values go towards one.

    Source: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks"; `torch.optim.Muon`.
    """
    a, b, c = coefficients
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
