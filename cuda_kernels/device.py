"""Which devices and element types the kernels run on."""

import torch

DTYPES = {torch.bfloat16: 80, torch.float16: 75}
"""Element types, and the oldest architecture that has them in its tensor cores."""


class CudaUnavailable(RuntimeError):
    """The kernels cannot run here; the message says why."""


def require_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """Raise a ValueError where a GPU's tensor cores do not have an element type."""
    properties = torch.cuda.get_device_properties(device)
    architecture = 10 * properties.major + properties.minor
    if architecture < DTYPES[dtype]:
        raise ValueError(f"dtype: {dtype} needs an sm_{DTYPES[dtype]} GPU, and {properties.name} is sm_{architecture}")


def cuda_device(device: torch.device | str) -> torch.device:
    """The device with its index.

    Raises:
        ValueError: `device` is not the name of a device.
        CudaUnavailable: it is no CUDA device, there is none or none of that number, or CuPy is missing.
    """
    if not isinstance(device, torch.device | str):
        raise ValueError(f"device is a torch.device or a string, not {device!r}")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: {device!r} is none that torch knows, like 'cuda' or 'cuda:0'") from error
    if device.type != "cuda":
        raise CudaUnavailable(f"the CUDA kernels need a CUDA device, not {device.type!r}")
    if not torch.cuda.is_available():
        raise CudaUnavailable("the CUDA kernels need a CUDA device, and torch finds none")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise CudaUnavailable(f"device: there is no {device}, torch finds {torch.cuda.device_count()} CUDA device(s)")
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        raise CudaUnavailable("the CUDA kernels need CuPy: pip install cupy-cuda13x") from error
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
