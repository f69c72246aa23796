"""Weights of 8 bits for a GPU: what is stored, that prompts and steps agree, and what the kernel serves."""

import pytest
import torch
import torch.nn.functional as F

from cuda_kernels.int8_linear import Int8Linear
from selfspan_core.models.device_matrices import Fp8DeviceStore, Int8DeviceStore
from selfspan_core.models.model import SpanModel
from selfspan_core.models.weights import DecodeWeights
from tests.support.attention_problem import needs_cuda
from tests.support.engine_tools import tiny_hf


def product(x, codes, scales, bias):
    """What the kernel computes."""
    weight = codes.double() * scales.double()[:, None]
    return F.linear(x.double(), weight, None if bias is None else bias.double()).to(x.dtype)


STORES = {"int8": Int8DeviceStore(product), "fp8": Fp8DeviceStore()}


@pytest.mark.parametrize("kind", STORES)
def test_values_are_those_of_the_codes(kind):
    """Would catch a weight that keeps other numbers than its codes stand for, and a scale of another row."""
    weight = torch.randn(40, 256, generator=torch.Generator().manual_seed(3)) * torch.logspace(-3, 2, 40)[:, None]
    before = weight.clone()
    matrix = STORES[kind](weight, None, False)
    assert matrix.values is weight and matrix.floats is None and matrix.shape == (40, 256)
    assert torch.allclose(weight, matrix.codes.float() * matrix.scales[:, None], rtol=1e-6)
    assert ((weight - before).abs() <= before.abs().amax(1, keepdim=True) / (250 if kind == "int8" else 27)).all()
    assert matrix.num_bytes == 40 * 256 + 40 * 4


@pytest.mark.parametrize("kind", STORES)
def test_scales_are_floats_of_any_model(kind):
    """Would catch scales of 16 bits, which the kernel refuses, where a model is made in bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert STORES[kind](torch.randn(8, 256), None, False).scales.dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


def test_the_kernel_takes_what_it_serves():
    """Would catch a depth or a number of rows that reaches a kernel which cannot compute it."""
    asked = []

    def counted(x, codes, scales, bias):
        asked.append(len(x))
        return product(x, codes, scales, bias)

    for depth, rows in ((256, 1), (256, 16), (256, 17), (128, 1)):
        weight = torch.randn(8, depth)
        matrix = Int8DeviceStore(counted)(weight, torch.randn(8), False)
        x = torch.randn(rows, depth)
        assert torch.allclose(matrix.apply(x), F.linear(x, weight, matrix.bias), atol=1e-4)
    assert asked == [1, 16] and not Int8Linear.serves(1, 12, 256)


def test_a_model_s_modules_compute_with_the_same_numbers():
    """Would catch a prompt that is computed with other weights than the steps behind it."""
    model = SpanModel(tiny_hf())
    weights = DecodeWeights(model, STORES["int8"])
    body = model.hf.get_decoder()
    x = torch.randn(3, weights.hidden_size)
    by_module = body.layers[0].mlp.down_proj(body.layers[0].mlp.up_proj(x))
    up = weights.layers[0].gate_up.apply(x).chunk(2, -1)[1]
    assert torch.allclose(weights.layers[0].down.apply(up), by_module, atol=1e-5)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("rows", [1, 16, 33])
def test_gpu_fp8(rows):
    """Would catch scales of the two sides in each other's place."""
    weight = torch.randn(512, 256, device="cuda", dtype=torch.bfloat16)
    matrix = STORES["fp8"](weight, None, False)
    x = torch.randn(rows, 256, device="cuda") * torch.logspace(-2, 2, rows, device="cuda")[:, None]
    x = x.bfloat16()
    exact = F.linear(x.double(), weight.double())
    error = (matrix.apply(x).double() - exact).abs() / (x.double().norm(dim=1, keepdim=True) * 16)
    assert error.max() < 0.05
