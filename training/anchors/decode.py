"""Greedy answers of many rows under any tracker's mask: slow and plain, with transformers' own model and cache."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import DynamicCache

from selfspan_core.spans.tracker import State
from training.anchors.spelling import SpelledTracker


@dataclass
class Answer:
    """What a row wrote.

    Attributes:
        ids: of the answer, as the model writes them.
        attended_tokens, dense_tokens: that its queries read, and that they had before them.
    """

    ids: list[int] = field(default_factory=list)
    attended_tokens: int = 0
    dense_tokens: int = 0


@torch.inference_mode()
def decode(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    trackers: Sequence[SpelledTracker],
    eos: int,
    max_new_tokens: int,
    is_dense: bool = False,
) -> list[Answer]:
    """Answer all prompts at once.

    Args:
        model: a causal model of transformers, whose attention takes masks `[rows, 1, queries, keys]`.
        prompts: their ids.
        trackers: of the answers.
        eos: ends an answer.
        max_new_tokens: of each.
        is_dense: whether every query reads everything, whatever is declared.
    """
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    pads = [longest - len(ids) for ids in prompts]
    # Padding is in front, so that all rows write at one position.
    padded = torch.tensor([[0] * pad + list(ids) for pad, ids in zip(pads, prompts, strict=True)], device=device)
    seen = np.zeros((len(prompts), longest + max_new_tokens), bool)
    for row, pad in enumerate(pads):
        seen[row, pad:longest] = True
    answers, open_rows = [Answer() for _ in prompts], set(range(len(prompts)))
    positions = torch.arange(longest, device=device) - torch.tensor(pads, device=device)[:, None]
    cache = DynamicCache()
    logits = _forward(model, padded, _prompt_mask(seen[:, :longest], device), positions.clamp(min=0), cache)
    for written in range(max_new_tokens):
        chosen = logits.argmax(-1).tolist()
        for row in sorted(open_rows):
            answers[row].ids.append(chosen[row])
            if chosen[row] == eos:
                open_rows.discard(row)
                continue
            state = trackers[row].push(chosen[row])
            _count(answers[row], state, is_dense)
            _see(seen[row], state, pads[row], is_dense)
        if not open_rows or written + 1 == max_new_tokens:
            break
        end = longest + written + 1
        mask = torch.from_numpy(seen[:, None, None, :end]).to(device)
        ids = torch.tensor(chosen, device=device)[:, None]
        logits = _forward(model, ids, mask, positions[:, -1:] + written + 1, cache)
    return answers


def _forward(
    model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    out = model(
        input_ids=ids,
        attention_mask=_additive(mask, next(model.parameters()).dtype),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1]


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _prompt_mask(seen: np.ndarray, device: torch.device) -> torch.Tensor:
    """Causal, padding left out; padding itself sees itself, since a query that sees nothing has no softmax."""
    length = seen.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask = causal & torch.from_numpy(seen).to(device)[:, None, :]
    return (mask | torch.eye(length, dtype=torch.bool, device=device))[:, None]


def _see(seen: np.ndarray, state: State, pad: int, is_dense: bool) -> None:
    """What the query of the id just written sees; itself, at least."""
    end = pad + state.position + 1
    seen[pad:end] = is_dense or state.sees_everything
    if not seen[pad]:
        for start, stop in state.visible:
            seen[pad + start : pad + stop] = True
    seen[end - 1] = True


def _count(answer: Answer, state: State, is_dense: bool) -> None:
    answer.dense_tokens += state.position + 1
    answer.attended_tokens += state.position + 1 if is_dense else state.num_visible
