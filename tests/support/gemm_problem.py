"""Random products, and how close a kernel has to come to them."""

import torch
import torch.nn.functional as F

DTYPES = {torch.bfloat16: 1, torch.float16: 0}


def problem(seed, dtype, batch, num_out, depth, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(shape, generator=generator).to(dtype).to(device)  # noqa: E731
    return make(batch, depth), make(num_out, depth) / depth**0.5, make(num_out)


def codes_problem(seed, dtype, batch, num_out, depth, device="cpu"):
    """The same with codes of 8 bits, all of them among them, and the scales of their rows."""
    x, _, bias = problem(seed, dtype, batch, num_out, depth, device)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (num_out, depth), generator=generator, dtype=torch.int8)
    scales = (0.5 + torch.rand(num_out, generator=generator)) / (74 * depth**0.5)
    return x, codes.to(device), scales.to(device), bias


def assert_gemm(out, x, weight, bias):
    """As close to the exact result as a sum in float32 and rounding once allow."""
    x, weight = x.double(), weight.double()
    exact = F.linear(x, weight, None if bias is None else bias.double())
    eps = torch.finfo(out.dtype).eps
    # Tensor cores cut off what does not fit float32's digits instead of rounding it.
    of_summing = 1e-6 * (F.linear(x.abs(), weight.abs()) + 1)
    assert ((out.double() - exact).abs() <= eps * exact.abs() + of_summing).all()
