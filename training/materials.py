"""An adapter's training data and held-out figures: problems of a task's generator, or prepared files."""

from typing import TYPE_CHECKING, NamedTuple

import torch

from selfspan_core.models.learned import Learned
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.base import Task
from selfspan_core.tasks.registry import get_task
from training.data import sources
from training.data.generated import evaluation_set
from training.data.summary_mixture import learned_from, parts_of
from training.loop import heldout as metrics
from training.loop.loss import LanguageModelLoss
from training.loop.packing import Sample, sample_of, without_mask
from training.loop.summary_heldout import SummaryHeldout
from training.loop.trainer import SampleStream

if TYPE_CHECKING:
    from training.finetune import FinetuneConfig

DIFFERENCES = "differences"


class GeneratedHeldout:
    """Fresh problems per size: the share whose whole solution greedy decoding reproduces.

    Raises:
        ValueError: a solution does not fit into `loop.row_tokens`, or there are too few problems.
    """

    def __init__(self, config: "FinetuneConfig", task: Task, tokenizer: SpanTokenizer) -> None:
        self._row = (config.loop.row_tokens, config.loop.max_intervals, tokenizer.pad_id)
        self._samples: dict[str, list[Sample]] = {}
        for size in config.heldout_operands:
            problems = evaluation_set(task, size, config.heldout_problems, seed=2)
            rendered = [task.render(p, tokenizer, config.annotated, with_steps=True) for p in problems]
            samples = [sample_of(r) for r in rendered]
            lengths = [len(sample.ids) for sample in samples]
            what = f"the held-out problems of {size} {task.generator.size_name}"
            metrics.require_room(lengths, config.loop.row_tokens, what)
            self._samples[f"exact/{size}"] = samples
            if config.mask_off_share:
                self._samples[f"exact_mask_off/{size}"] = [without_mask(sample) for sample in samples]

    def __call__(self, module: LanguageModelLoss, device: torch.device, micro_rows: int) -> dict[str, float]:
        """Figures `exact/<size>`, and `exact_mask_off/<size>` where the mask was off for some examples."""
        figures = {}
        for key, samples in self._samples.items():
            answers = [[(int(s.loss_mask.argmax()), len(s.ids))] for s in samples]
            figures[key] = metrics.exact_answers(module, device, samples, answers, self._row, micro_rows)
        return figures


Heldout = GeneratedHeldout | SummaryHeldout


class Material(NamedTuple):
    """What an adapter is trained on, its figures on held-out data, and what serving may ask of it afterwards."""

    stream: SampleStream
    heldout: Heldout
    learned: Learned


def training_material(config: "FinetuneConfig", tokenizer: SpanTokenizer) -> Material:
    """The material of a task's adapter.

    Raises:
        OSError, ValueError: data is missing, or does not fit the settings.
    """
    task = get_task(config.task)
    if task.generator is None:
        return _prepared(config, tokenizer)
    if config.head_tokens is not None:
        task = task.for_model(task.max_tokens, Learned(head_tokens=config.head_tokens))
    variant = DIFFERENCES if config.more_differences else ""
    stream = sources.generated_source(task, tokenizer, config.annotated, config.mask_off_share, variant)
    return Material(stream, GeneratedHeldout(config, task, tokenizer), Learned(head_tokens=config.head_tokens))


def _prepared(config: "FinetuneConfig", tokenizer: SpanTokenizer) -> Material:
    train, heldout = (
        parts_of(config.data, config.mixture, tokenizer, config.annotated, split) for split in ("train", "heldout")
    )
    kinds = {
        key: sources.summary_source(part, config.mask_off_share, config.sentence_dropout) for key, part in train.items()
    }
    figures = SummaryHeldout(heldout, tokenizer, config.annotated, config.loop)
    return Material(sources.mix(kinds, config.mixture), figures, learned_from(train, config.loop.row_tokens))
