"""How an engine can run a lane: token by token with one of the attention op's implementations, or captured.

    reference, gather, cuda   PyTorch operations one by one, self-selected attention by that implementation of the op
    captured                  the whole decode step of either lane as one CUDA graph, through `batch_engine`

Asked for and unavailable is an error that says why, as everywhere.
"""

import torch

from cuda_kernels.launch import CudaUnavailable, cuda_device
from selfspan_core import attention
from selfspan_core.attention import IMPLS, ImplUnavailable

CAPTURED = "captured"
ENGINE_IMPLS = (*IMPLS, CAPTURED)


def default_impl(device: torch.device) -> str:
    """What a device runs where nobody asks for anything else."""
    return CAPTURED if device.type == "cuda" else "gather"


def why_unavailable(impl: str, device: torch.device | str) -> str | None:
    """Why an implementation cannot run on a device, or None if it can; whether it takes a model shows when it is made.

    Raises:
        ValueError: there is no implementation of that name.
    """
    if impl not in ENGINE_IMPLS:
        raise ValueError(f"no implementation is called {impl!r}; there are {', '.join(ENGINE_IMPLS)}")
    return why_no_graph(device) if impl == CAPTURED else attention.why_unavailable(impl, device)


def why_no_graph(device: torch.device | str) -> str | None:
    """Why no decode step can be captured on a device, or None if one can."""
    try:
        cuda_device(device)
    except CudaUnavailable as error:
        return f"impl '{CAPTURED}': {error}"
    return None


def require_impl(impl: str, device: torch.device | str) -> None:
    """Raise ImplUnavailable, with the reason, unless an implementation can run on a device."""
    reason = why_unavailable(impl, device)
    if reason is not None:
        raise ImplUnavailable(reason)
