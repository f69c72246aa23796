"""A language model that foretells how much of an editor's summary each sentence of an article holds.

Source: Xu et al., "Discourse-Aware Neural Extractive Text Summarization" and BertSum (Liu and Lapata, arXiv 1908.08345)
score sentences by a bidirectional encoder. A causal model sees nothing of what comes behind, so the article is given
twice, and the second time is read off (Springer et al., arXiv 2402.15449, "Repetition Improves Language Model
Embeddings").
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

HEAD_WIDTH = 256
NUM_ROWS_FORETOLD = 32
PAD_TOKENS = 128
HEAD_LEARNING_RATE = 1e-3
WARM_UP_SHARE, LEAST_RATE = 0.06, 0.02


@dataclass(frozen=True)
class ReadArticle:
    """An article to read.

    Attributes:
        id: of the article.
        tokens: int64 [tokens], of its sentences end to end.
        ends: int64 [sentences], where each ends; of those that are not read, because the article is too long, the last.
        hits: float32 [sentences], not a number where unknown.
    """

    id: str
    tokens: np.ndarray
    ends: np.ndarray
    hits: np.ndarray

    @classmethod
    def of(cls, key: str, tokens: np.ndarray, lengths: np.ndarray, hits: np.ndarray, most_tokens: int) -> "ReadArticle":
        """An article of sentences of so many tokens, read up to its first `most_tokens`."""
        ends = np.minimum(np.cumsum(lengths), most_tokens).astype(np.int64)
        one = cls(key, tokens[:most_tokens].astype(np.int64), ends, hits.astype(np.float32))
        one.hits[~one.is_read] = np.nan
        return one

    @property
    def is_read(self) -> np.ndarray:
        """Of each sentence, whether any of it is."""
        return np.concatenate([[0], self.ends[:-1]]) < len(self.tokens)

    @property
    def spans(self) -> tuple[np.ndarray, np.ndarray]:
        """Start and end of each sentence; at least one token, the last one where nothing of it is read."""
        starts = np.minimum(np.concatenate([[0], self.ends[:-1]]), len(self.tokens) - 1)
        return starts, np.maximum(self.ends, starts + 1)


class SentenceModel(nn.Module):
    """Scores of sentences by a causal language model's last states: their mean over the sentence, and at its end.

    Args:
        body: of the language model, which takes ids and returns `last_hidden_state`.
        hidden_size: of its states.
        num_heads: kinds of summaries, each with scores of its own.
    """

    def __init__(self, body: nn.Module, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.body = body
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * hidden_size, HEAD_WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(HEAD_WIDTH, 1))
            for _ in range(num_heads)
        )

    def forward(self, articles: Sequence[ReadArticle], head: int) -> list[torch.Tensor]:
        """Scores [sentences] of each article, as one kind of summary has them."""
        device = next(self.body.parameters()).device
        longest = 2 * max(len(article.tokens) for article in articles)
        ids = torch.zeros(len(articles), -(-longest // PAD_TOKENS) * PAD_TOKENS, dtype=torch.long)
        for row, article in enumerate(articles):
            ids[row, : 2 * len(article.tokens)] = torch.from_numpy(np.tile(article.tokens, 2))
        states = self.body(input_ids=ids.to(device), use_cache=False).last_hidden_state.float()
        sums = F.pad(states.cumsum(1), (0, 0, 1, 0))
        scores = []
        for row, article in enumerate(articles):
            starts, ends = (torch.from_numpy(part + len(article.tokens)).to(device) for part in article.spans)
            means = (sums[row, ends] - sums[row, starts]) / (ends - starts)[:, None]
            scores.append(self.heads[head](torch.cat([means, states[row, ends - 1]], 1))[:, 0])
        return scores


@dataclass(frozen=True)
class Scale:
    """Hits as numbers about 0 with a deviation of 1, and back."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, articles: Sequence[ReadArticle]) -> "Scale":
        """That of the known hits of some articles."""
        hits = np.concatenate([article.hits for article in articles])
        return cls(float(np.nanmean(hits)), float(np.nanstd(hits)) + 1e-6)


@dataclass(frozen=True)
class Fit:
    """How a model learns.

    Attributes:
        epochs: over the articles, at most.
        most_s: seconds; the learning rate falls to its end by then, too.
        learning_rate: of the body.
        batch: articles of a step.
    """

    epochs: int
    most_s: float
    learning_rate: float = 5e-5
    batch: int = 8


def batches(articles: Sequence[ReadArticle], size: int, rng: random.Random) -> list[list[ReadArticle]]:
    """Articles of about one length together, in an order drawn."""
    ordered = sorted(articles, key=lambda article: len(article.tokens) + 300 * rng.random())
    made = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    rng.shuffle(made)
    return made


def learn(
    model: SentenceModel, work: Sequence[tuple[int, Sequence[ReadArticle]]], scale: Scale, fit: Fit, seed: int
) -> float:
    """Teach a model the hits of articles.

    Args:
        model: on its device.
        work: (head, articles with hits).
        scale: of hits.
        fit: how.
        seed: of order and dropout.

    Returns:
        The mean loss of the last fifty steps.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    plan = []
    for _ in range(fit.epochs):
        epoch = [(head, batch) for head, articles in work for batch in batches(articles, fit.batch, rng)]
        rng.shuffle(epoch)
        plan += epoch
    device = next(model.parameters()).device
    rates = (fit.learning_rate, HEAD_LEARNING_RATE)
    groups = [
        {"params": model.body.parameters(), "weight_decay": 0.01},
        {"params": model.heads.parameters(), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rates[0], betas=(0.9, 0.98), fused=device.type == "cuda")
    model.train()
    losses, began = [], time.monotonic()
    for step, (head, batch) in enumerate(plan):
        done = max(step / len(plan), (time.monotonic() - began) / fit.most_s)
        if done >= 1:
            break
        factor = min(1.0, (step + 1) / (WARM_UP_SHARE * len(plan))) * max(LEAST_RATE, 1 - done)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        losses.append(_step(model, head, batch, scale, optimizer))
        if step % 100 == 0:
            told = torch.stack(losses[-50:]).mean().item()
            seconds = time.monotonic() - began
            left = seconds / (step + 1) * (len(plan) - step - 1)
            print(f"  step {step + 1}/{len(plan)}  loss {told:.3f}  {seconds:.0f} s  ETA {left:.0f} s", flush=True)
    return torch.stack(losses[-50:]).mean().item()


def _step(
    model: SentenceModel, head: int, batch: Sequence[ReadArticle], scale: Scale, optimizer: torch.optim.Optimizer
) -> torch.Tensor:
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        scores = torch.cat(model(batch, head)).float()
    wanted = torch.cat([torch.from_numpy(article.hits) for article in batch]).to(device)
    is_known = ~wanted.isnan()
    loss = F.huber_loss(scores[is_known], (wanted[is_known] - scale.mean) / scale.deviation, delta=2.0)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


@torch.inference_mode()
def foretell(
    model: SentenceModel, articles: Sequence[ReadArticle], scale: Scale, head: int = 0
) -> dict[str, np.ndarray]:
    """Expected hits by article, float32 [sentences]; not a number of those that are not read."""
    device = next(model.parameters()).device
    model.eval()
    ordered, found = sorted(articles, key=lambda article: len(article.tokens)), {}
    for at in range(0, len(ordered), NUM_ROWS_FORETOLD):
        batch = ordered[at : at + NUM_ROWS_FORETOLD]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            scores = model(batch, head)
        for article, score in zip(batch, scores, strict=True):
            hits = score.float().cpu().numpy() * scale.deviation + scale.mean
            found[article.id] = np.where(article.is_read, hits, np.nan)
    return found
