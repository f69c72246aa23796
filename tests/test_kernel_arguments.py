"""Wrong arguments of the kernels: each is an error that names it, before anything is launched."""

import re

import pytest
import torch

from cuda_kernels.attention import SpanAttention
from cuda_kernels.checks import AttentionShape, check_capacity, check_no_overlap, check_tensor
from cuda_kernels.compile import KernelConfig, columns_of_warp
from cuda_kernels.device import CudaUnavailable, cuda_device
from tests.support.attention_problem import BF16

SHAPE = {"batch": 2, "num_heads": 8, "num_kv_heads": 2, "head_dim": 128, "max_spans": 4, "dtype": BF16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch is 1 to 256, not 0"),
        ({"batch": 257}, "batch is 1 to 256, not 257"),
        ({"num_heads": 9}, "num_heads (9) is no multiple of num_kv_heads (2)"),
        ({"num_heads": 34}, "num_heads: at most 16 per key/value head, not 17"),
        ({"num_kv_heads": 0}, "no multiple of num_kv_heads (0)"),
        ({"head_dim": 80}, "head_dim is one of 64, 96, 128, not 80"),
        ({"max_spans": 0}, "max_spans is 1 to 262144, not 0"),
        ({"max_spans": 262_145}, "max_spans is 1 to 262144, not 262145"),
        ({"num_queries": 0}, "num_queries is 1 to 16, not 0"),
        ({"num_queries": 17}, "num_queries is 1 to 16, not 17"),
        ({"num_queries": 2.0}, "num_queries is an int, not 2.0"),
        ({"batch": 2.0}, "batch is an int, not 2.0"),
        ({"num_heads": "8"}, "num_heads is an int, not '8'"),
        ({"num_kv_heads": True}, "num_kv_heads is an int, not True"),
        ({"head_dim": None}, "head_dim is an int, not None"),
        ({"max_spans": 4.5}, "max_spans is an int, not 4.5"),
        ({"dtype": torch.float32}, "dtype is torch.bfloat16 or torch.float16, not torch.float32"),
        ({"dtype": "bfloat16"}, "dtype is torch.bfloat16 or torch.float16, not 'bfloat16'"),
        ({"dtype": []}, "dtype is torch.bfloat16 or torch.float16, not []"),
    ],
)
def test_shapes_that_cannot_be_served_are_named(change, message):
    """Would catch a launch that reads past its arguments instead of an error before it."""
    AttentionShape(**SHAPE)
    with pytest.raises(ValueError, match=re.escape(message)):
        AttentionShape(**(SHAPE | change))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, 4, 64), "keys is torch.float32, and has to be torch.bfloat16"),
        (torch.zeros(2, 5, 64, dtype=BF16), "keys has shape (2, 5, 64), and has to have (2, 4, 64)"),
        (torch.zeros(2, 64, 4, dtype=BF16).transpose(1, 2), "keys: the last dimension is not contiguous"),
        (torch.zeros(2, 4, 68, dtype=BF16)[..., :64], "keys: strides are multiples of 8 elements"),
        (torch.zeros(2, 4, 72, dtype=BF16)[..., 4:68], "keys: strides are multiples of 8 elements"),
        (torch.zeros(2, 4, 64, dtype=BF16, device="meta"), "keys is on meta, and the kernels run on cpu"),
        ([1, 2], "keys is a tensor, not list"),
    ],
)
def test_tensors_that_cannot_be_served_are_named(tensor, message):
    """Would catch a misaligned or foreign tensor that crashes the process, or is read as something else."""
    cpu = torch.device("cpu")
    check_tensor("keys", torch.zeros(2, 4, 64, dtype=BF16), (2, 4, 64), BF16, cpu)
    check_tensor("keys", torch.zeros(2, 4, 72, dtype=BF16)[..., 8:], (2, 4, 64), BF16, cpu)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_tensor("keys", tensor, (2, 4, 64), BF16, cpu)
    for numbers in (torch.zeros(4, dtype=torch.int32)[::2], torch.zeros(4, dtype=torch.int32)[1:3]):
        with pytest.raises(ValueError, match="counts is not contiguous from an address"):
            check_tensor("counts", numbers, (2,), torch.int32, cpu, contiguous=True)


@pytest.mark.parametrize(
    ("capacity", "message"),
    [
        (0, "capacity is 1 to 262144, not 0"),
        (262_145, "capacity is 1 to 262144, not 262145"),
        (9.0, "capacity is an int, not 9.0"),
        (262_144, "capacity: 256 x 32 x 262144 are too many tokens for one plan"),
    ],
)
def test_capacities_that_cannot_be_planned_are_named(capacity, message):
    """Would catch work indices that overflow 31 bits."""
    check_capacity(256, 8, 262_144)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_capacity(256, 32, capacity)


@pytest.mark.parametrize(
    "out",
    [
        torch.zeros(1, 4, 8).expand(2, 4, 8),
        torch.zeros(100).as_strided((2, 4, 8), (8, 8, 1)),  # the second row is the first one's second head
        torch.zeros(100).as_strided((2, 4, 8), (24, 8, 1)),
        torch.zeros(200).as_strided((2, 4, 16), (64, 8, 1)),
    ],
    ids=["one row for all", "rows a head apart", "a head too short", "heads too short"],
)
def test_outputs_that_overlap_are_refused(out):
    """Would catch two blocks that write to one place: whose answer stays there would be chance."""
    for fine in (torch.zeros(2, 4, 8), torch.zeros(4, 2, 8).transpose(0, 1), torch.zeros(2, 9, 24)[:, ::2, :8]):
        check_no_overlap("out", fine)
    check_no_overlap("out", torch.zeros(100).as_strided((1, 4, 8), (0, 8, 1)))
    with pytest.raises(ValueError, match="out: rows or heads lie on each other"):
        check_no_overlap("out", out)


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("gpu", ValueError, "device: 'gpu' is none that torch knows"),
        ("cuda:x", ValueError, "device: 'cuda:x' is none that torch knows"),
        (None, ValueError, "device is a torch.device or a string, not None"),
        (0, ValueError, "device is a torch.device or a string, not 0"),
        ("cuda:7", CudaUnavailable, "device: there is no cuda:7, torch finds 1 CUDA device(s)"),
    ],
)
def test_devices_that_are_none_are_named(monkeypatch, device, error, message):
    """Would catch an error out of torch or CuPy that does not say which argument is wrong."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(error, match=re.escape(message)):
        cuda_device(device)


def test_without_a_gpu_the_reason_is_given():
    """Would catch a silent fallback, or a crash inside CuPy."""
    with pytest.raises(CudaUnavailable, match="need a CUDA device, not 'cpu'"):
        SpanAttention(AttentionShape(**SHAPE), device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(CudaUnavailable, match="torch finds none"):
            SpanAttention(AttentionShape(**SHAPE))


def test_columns_are_few_where_row_heads_are():
    """Would catch a merge of many columns of many splits, which costs more than reading twice from the cache."""
    assert columns_of_warp(8, 132) == 16 and columns_of_warp(256, 132) == 32
    wide, narrow = (KernelConfig(128, 4, True, 8, 8, columns) for columns in (32, 16))
    assert (wide.column_blocks, wide.columns) == (1, 32) and (narrow.column_blocks, narrow.columns) == (2, 16)
    assert "-DMAX_COLUMNS=16" in narrow.macros()
