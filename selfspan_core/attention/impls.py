"""The names of the attention implementations; `backends` says what they are. No torch here."""

IMPLS = ("reference", "gather", "cuda")
"""Those that run PyTorch's operations one by one."""
CAPTURED = "captured"
ENGINE_IMPLS = (*IMPLS, CAPTURED)
