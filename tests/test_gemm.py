"""The small-batch GEMM: the kernel's code on the CPU, and for every architecture."""

import ctypes
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_kernels import compile as loader
from cuda_kernels.int8_linear import Int8Linear
from cuda_kernels.layers import DecodeOps
from tests.support.attention_problem import needs_compiler, needs_cuda
from tests.support.gemm_problem import DTYPES, assert_gemm, codes_problem, problem
from tests.support.kernel_on_cpu import compiled, pointer
from tests.support.slow import examples


@functools.cache
def library(is_bf16: int, is_int8: int = 0) -> ctypes.CDLL:
    """The kernel for one element type, and weights of that or of codes; compiled once per test run."""
    return compiled("gemm.cpp", (f"-DIS_BF16={is_bf16}", f"-DIS_INT8={is_int8}"))


@needs_compiler
@settings(max_examples=examples(15, 40), deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(list(DTYPES)),
    st.integers(1, 16),
    st.integers(1, 20),
    st.integers(1, 19),
    st.integers(1, 9),
    st.booleans(),
)
def test_any_shape(seed, dtype, batch, tiles, k_tiles, num_blocks, has_bias):
    """Would catch a row of the weights that is left out, a warp's part of K that is lost, rows of the batch swapped."""
    x, weight, bias = problem(seed, dtype, batch, 8 * tiles, 128 * k_tiles)
    bias = bias if has_bias else None
    out = torch.full((batch, 8 * tiles), float("nan"), dtype=dtype)
    library(DTYPES[dtype]).run_linear(
        *(pointer(one) for one in (x, weight, None, bias)), batch, 8 * tiles, 128 * k_tiles, pointer(out), num_blocks
    )
    assert_gemm(out, x, weight, bias)


@needs_compiler
@settings(max_examples=examples(10, 40), deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(list(DTYPES)),
    st.integers(1, 16),
    st.integers(1, 10),
    st.integers(1, 19),
    st.integers(1, 9),
    st.booleans(),
)
def test_any_shape_of_codes(seed, dtype, batch, tiles, k_tiles, num_blocks, has_bias):
    """Would catch a code of the wrong sign or place, another row's scale, and a scale that the bias gets, too."""
    x, codes, scales, bias = codes_problem(seed, dtype, batch, 8 * tiles, 256 * k_tiles)
    bias = bias if has_bias else None
    out = torch.full((batch, 8 * tiles), float("nan"), dtype=dtype)
    library(DTYPES[dtype], 1).run_linear(
        *(pointer(one) for one in (x, codes, scales, bias)), batch, 8 * tiles, 256 * k_tiles, pointer(out), num_blocks
    )
    assert_gemm(out, x, codes.double() * scales.double()[:, None], bias)


@pytest.mark.parametrize("is_int8", [0, 1])
@pytest.mark.parametrize("architecture", loader.ARCHITECTURES)
def test_compiles_for_every_architecture_without_spills(architecture, is_int8):
    """Would catch an instruction that a Turing GPU does not have, or registers that go to memory."""
    macros = (f"-DIS_BF16={int(architecture >= 80)}", f"-DIS_INT8={is_int8}")
    report = loader.compile_for(macros, architecture, "gemm.cu")[1]
    assert "0 bytes spill stores, 0 bytes spill loads" in report


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3, 8, 9, 16])
@pytest.mark.parametrize(("num_out", "depth"), [(12288, 4096), (4096, 11008), (8192, 384), (1000, 128)])
def test_gpu_gemm(dtype, batch, num_out, depth):
    """Would catch a launcher that takes the kernel for shapes that it cannot serve, or the wrong tensor."""
    x, weight, bias = problem(batch, dtype, batch, num_out, depth, "cuda")
    ops = DecodeOps(dtype)
    for given_bias in (None, bias):
        out = ops.linear(x, weight, given_bias)
        assert_gemm(out, x, weight, given_bias)
        assert torch.equal(out, ops.linear(x, weight, given_bias))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3, 8, 16])
@pytest.mark.parametrize(("num_out", "depth"), [(12288, 4096), (4096, 11008), (8192, 256), (1000, 512)])
def test_gpu_gemm_of_codes(dtype, batch, num_out, depth):
    """Would catch a launcher that passes scales and codes in each other's place."""
    x, codes, scales, bias = codes_problem(batch, dtype, batch, num_out, depth, "cuda")
    linear = Int8Linear(dtype)
    for given_bias in (None, bias):
        out = linear(x, codes, scales, given_bias)
        assert_gemm(out, x, codes.double() * scales.double()[:, None], given_bias)
        assert torch.equal(out, linear(x, codes, scales, given_bias))
