"""What `training.bench_engine` measures of the shipped model: its speed, its answers, and whether it writes what the
reference writes.
"""

import random
from collections.abc import Sequence

import torch

from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.models.model import SpanModel
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.paths import ADAPTERS as SHIPPED_ADAPTERS
from selfspan_core.paths import BASE
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.tracker import Tracker
from selfspan_core.tasks.registry import get_task
from training.bench.replay import Recorded, Recording, record
from training.data.generated import evaluation_set
from training.evaluation.drafts import DraftReader

ADAPTERS = {"span": "arithmetic-span", "plain": "arithmetic-plain"}
LANES = (("plain-dense", "plain", "dense"), ("span-dense", "span", "dense"), ("span-sparse", "span", "sparse"))
MIXED_OPERANDS = (4, 8, 16, 24, 48)


def shipped_weights(adapter: str, device: torch.device) -> DecodeWeights:
    """The shipped base with a shipped adapter, in 16 bits on CUDA."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return DecodeWeights(SpanModel.load(BASE, SHIPPED_ADAPTERS / ADAPTERS[adapter], str(device), dtype))


def record_all(
    shipped: dict[str, DecodeWeights], operands: int, num: int, batch: int, seed: int
) -> tuple[dict[str, Recorded], dict]:
    """What the shipped models write for fresh expressions, three lanes; and their answers checked."""
    task = get_task("arithmetic")
    problems = evaluation_set(task, operands, num, seed)
    made, right = {}, {}
    for lane, adapter, attention in LANES:
        weights = shipped[adapter]
        tokenizer, annotated = weights.model.tokenizer, adapter == "span"
        prompts = [task.render(problem, tokenizer, annotated) for problem in problems]
        engine = BatchEngine(
            weights, tokenizer.markers, BatchShape(batch, weights.model.max_context, attention == "dense")
        )
        made[lane] = record(engine, prompts, annotated)
        texts = [tokenizer.decode(list(one.ids)) for one in made[lane].recordings]
        answers = [task.answer(text.replace(tokenizer.decode([tokenizer.markers.eos]), "")) for text in texts]
        right[lane] = sum(task.check(problem, answer) for problem, answer in zip(problems, answers, strict=True))
        del engine
    return made, right


@torch.inference_mode()
def ties(weights: DecodeWeights, markers: Markers, recordings: Sequence[Recording], prompts: Sequence) -> dict:
    """Where the model's own forward, under a mask of what each token sees, would have written another id.

    One forward pass per text. Such a place is a tie if the two logits are as near as rounding moves them.
    """
    model = weights.model
    tokens, gaps = 0, []
    for recording, prompt in zip(recordings, prompts, strict=True):
        start = recording.layout.num_tokens
        ids = [*prompt.ids[:start], *recording.ids]
        tracker = Tracker(markers, recording.layout, recording.annotated)
        visible = [((0, p + 1),) for p in range(start)] + [tracker.push(token).visible for token in recording.ids]
        most = max(map(len, visible))
        bounds = torch.tensor([[*one, *[(0, 0)] * (most - len(one))] for one in visible], device=model.device)
        keys = torch.arange(len(ids), device=model.device)
        mask = ((bounds[:, :, :1] <= keys) & (keys < bounds[:, :, 1:])).any(1)[None, None]
        on_device = torch.tensor([ids], device=model.device)
        hidden = model.hf.get_decoder()(
            input_ids=on_device,
            position_ids=torch.arange(len(ids), device=model.device)[None],
            use_cache=False,
            reader=DraftReader(mask),
        ).last_hidden_state
        logits = weights.head.apply(hidden[0, start - 1 : -1]).float()
        written = on_device[0, start:]
        best, own = logits.max(-1).values, logits.gather(1, written[:, None])[:, 0]
        tokens += len(written)
        gaps += (best - own)[best > own].tolist()
    return {"tokens": tokens, "other": len(gaps), "largest_gap": max(gaps, default=0.0), "gaps": sorted(gaps)[-20:]}


def same_tokens(weights: DecodeWeights, num: int, batch: int, seed: int) -> dict:
    """Expressions of several lengths, self-selected, batched and one at a time, against the model's own forward."""
    task, tokenizer = get_task("arithmetic"), weights.model.tokenizer
    each = -(-num // len(MIXED_OPERANDS))
    problems = [problem for operands in MIXED_OPERANDS for problem in evaluation_set(task, operands, each, seed + 1)]
    random.Random(seed).shuffle(problems)
    prompts = [task.render(problem, tokenizer, True) for problem in problems[:num]]
    texts = {}
    for name, rows in (("mixed batch", batch), ("alone", 1)):
        engine = BatchEngine(weights, tokenizer.markers, BatchShape(rows, weights.model.max_context, False))
        texts[name] = record(engine, prompts, True).recordings
        del engine
    figures = {name: ties(weights, tokenizer.markers, texts[name], prompts) for name in texts}
    same = sum(one.ids == other.ids for one, other in zip(*texts.values(), strict=True))
    return {"n": len(prompts), "operands": MIXED_OPERANDS, "batch": batch, "same_text_alone": same} | figures
