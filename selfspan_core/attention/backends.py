"""The attention implementations, and the reasons why one of them cannot run on a device.

    reference  masked, eager, float32, over everything: the oracle
    gather     reads only visible keys and values: gathers them into one contiguous piece, fused attention over it
    cuda       the kernel of `cuda_kernels`, which reads intervals in place
    captured   the whole decode step of either lane as one CUDA graph, with the same kernel

The first three run PyTorch's operations one by one and differ in self-selected attention only. A request for
an implementation that is unavailable is an error that says why, never a silent fallback.
"""

import torch

from cuda_kernels.device import CudaUnavailable, cuda_device
from selfspan_core.attention.impls import CAPTURED, ENGINE_IMPLS
from selfspan_core.errors import ImplUnavailable


def default_impl(device: torch.device) -> str:
    """The implementation that a device uses by default."""
    return CAPTURED if device.type == "cuda" else "gather"


def why_unavailable(impl: str, device: torch.device | str) -> str | None:
    """Why an implementation cannot run on a device, or None if it can. Whether it supports a model is checked later.

    Raises:
        ValueError: there is no implementation of that name, or `device` is not the name of a device.
    """
    if impl not in ENGINE_IMPLS:
        raise ValueError(f"no implementation is called {impl!r}; there are {', '.join(ENGINE_IMPLS)}")
    return why_no_kernels(impl, device) if impl in ("cuda", CAPTURED) else None


def why_no_kernels(impl: str, device: torch.device | str) -> str | None:
    """Why an implementation that is made of CUDA kernels cannot run on a device, or None if it can."""
    try:
        cuda_device(device)
    except CudaUnavailable as error:
        return f"impl {impl!r}: {error}"
    return None


def require_impl(impl: str, device: torch.device | str) -> None:
    """Raise ImplUnavailable, with the reason, unless an implementation can run on a device."""
    reason = why_unavailable(impl, device)
    if reason is not None:
        raise ImplUnavailable(reason)
