"""What the next id is drawn from, by a task's rules, temperature and top-p: one definition for whatever draws with
PyTorch.

`cuda_kernels/csrc/sample.cu` says the same for what is drawn in a captured graph; a test holds all of them to it.
Top-p is nucleus sampling (Holtzman et al., arXiv 1904.09751).
"""

import torch

from selfspan_core.engine.rules import Limits

LEAST_TEMPERATURE = 1e-6
"""Below it the likeliest id is taken: logits over it would not be numbers any more."""


def is_greedy(temperature: float) -> bool:
    """Whether nothing is drawn: the likeliest id is taken, the first of equals."""
    return temperature < LEAST_TEMPERATURE


def probabilities(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """What each id is drawn with, float32 `[V]` on the logits' device; waits for nothing.

    Below a `top_p` of 1 only as many of the likeliest ids stay as it takes to hold that share, and those that are as
    likely as the last of them, so that no order among equals matters; the rest is 0, and the sum is not 1 then.

    Args:
        logits: `[V]`.
        temperature: not a greedy one.
        top_p: above 0 and at most 1.
    """
    scores = logits.float() / temperature
    every = torch.softmax(scores, dim=-1)
    if top_p >= 1:
        return every
    # Scores are compared, not probabilities: of equal scores a vectorized exponential need not make equal ones.
    ordered = scores.sort(descending=True).values
    held = torch.softmax(ordered, dim=-1).cumsum(0, dtype=torch.float64)
    last = (held < top_p).sum(0, keepdim=True).clamp(max=len(ordered) - 1)  # rounding may keep all sums below
    return every.where(scores >= ordered.gather(0, last), 0.0)


def draw(logits: torch.Tensor, temperature: float, top_p: float, seed: int, position: int) -> int:
    """The next id. It depends on these arguments alone: not on what other rows or earlier steps drew.

    Args:
        logits: `[V]`, on any device.
        temperature: a greedy one takes the likeliest id.
        top_p: see `probabilities`.
        seed: of the request.
        position: of the token whose logits they are.
    """
    if is_greedy(temperature):
        return int(logits.argmax())
    generator = torch.Generator().manual_seed((seed * 1_000_003 + position) % 2**63)
    return int(torch.multinomial(probabilities(logits.cpu(), temperature, top_p), 1, generator=generator))


def narrow(logits: torch.Tensor, limits: Limits) -> torch.Tensor:
    """Logits `[V]` with minus infinity at every id that may not come next; the same tensor where all may.

    Raises:
        ValueError: the limits leave nothing.
    """
    only, banned = limits
    if only is None:
        if not banned:
            return logits
        return logits.index_fill(0, torch.tensor(list(banned), device=logits.device), -torch.inf)
    allowed = sorted(set(only) - set(banned))
    if not allowed:
        raise ValueError("the rules leave nothing to write")
    at = torch.tensor(allowed, device=logits.device)
    return torch.full_like(logits, -torch.inf).index_copy(0, at, logits[at])
