"""Stacked Muon against torch's own, matrix by matrix."""

import pytest
import torch

from training.loop.muon import StackedMuon

SHAPES = [(24, 24), (24, 24), (64, 24), (24, 64), (64, 24), (40, 40)]


def parameters(seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


@pytest.mark.parametrize("nesterov", [True, False])
def test_stacked_muon_is_muon(nesterov):
    """Would catch a transposed update, a matrix that takes another's, or a rate not scaled by the sides."""
    ours, theirs = parameters(0), parameters(0)
    settings = {"lr": 1.0, "weight_decay": 0.03, "momentum": 0.9, "nesterov": nesterov}
    optimizers = [StackedMuon(ours, **settings), torch.optim.Muon(theirs, **settings)]
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        for index, (mine, its) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(mine.shape, generator=generator)
            skipped = step == 2 and index == 1  # a matrix without a gradient is left alone
            mine.grad, its.grad = (None, None) if skipped else (gradient, gradient.clone())
        for optimizer in optimizers:
            optimizer.step()
    for mine, its in zip(ours, theirs, strict=True):
        # Both iterate in bfloat16; batched products may round otherwise.
        torch.testing.assert_close(mine, its, atol=0.01, rtol=0.01)
    assert optimizers[0].state_dict()["state"].keys() == optimizers[1].state_dict()["state"].keys()


def test_other_rate_adjustments_are_refused():
    """Would catch an option that is taken and ignored."""
    optimizer = StackedMuon(parameters(0), adjust_lr_fn="match_rms_adamw")
    with pytest.raises(ValueError, match="adjustment"):
        optimizer.step()
