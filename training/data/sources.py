"""Where training samples come from, by name, and how they are mixed.

A source is an endless iterator of packed-ready samples for one (seed, shard). Mixing is by tokens, not by samples:
the source that is furthest behind its share comes next.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.spans.render import Rendered
from selfspan_core.tasks.base import Task
from training.data.copying import copy_examples
from training.data.generated import examples as generated_examples
from training.data.summary_source import MixturePart, summary_examples
from training.loop.packing import Sample, plain_sample, sample_of, without_mask
from training.loop.trainer import SampleStream
from training.text_data import TextShards

TEXT_SOURCES = ("wikipedia", "wikinews", "news", "summaries")
ARITHMETIC_PLAIN = "arithmetic-plain"
ARITHMETIC_SPAN = "arithmetic-span"
COPY = "copy"

ShardedSource = Callable[[int, int, int], Iterator[Sample]]


def text_source(folder: Path, name: str) -> ShardedSource:
    """Documents of one text source, shuffled anew each epoch; shards are disjoint."""

    def stream(seed: int, shard: int, num_shards: int) -> Iterator[Sample]:
        for ids in TextShards(folder, name, "train").stream(seed, shard, num_shards):
            yield plain_sample(ids)

    return stream


def copy_source(folder: Path, tokenizer: SpanTokenizer) -> ShardedSource:
    """Word-for-word copying of named sentences (`training.data.copying`)."""

    def stream(seed: int, shard: int, num_shards: int) -> Iterator[Sample]:
        for example in copy_examples(folder, tokenizer, seed, shard, num_shards):
            yield plain_sample(example.ids, example.loss_mask)

    return stream


def partly_without_mask(examples: Iterable[Rendered], share: float, seed: int, shard: int) -> Iterator[Sample]:
    """Samples of rendered examples, of which a share, drawn from seed and shard, is without its span mask."""
    rng = random.Random(f"mask off {seed} {shard}")
    for rendered in examples:
        sample = sample_of(rendered)
        yield without_mask(sample) if rng.random() < share else sample


def generated_source(
    task: Task, tokenizer: SpanTokenizer, annotated: bool, mask_off_share: float = 0.0, variant: str = ""
) -> ShardedSource:
    """Worked problems of a task's generator, with or without markers; names start at a random anchor.

    Of the examples, `mask_off_share` (chosen at random) are seen without the span mask: every token sees all before it.
    """

    def stream(seed: int, shard: int, num_shards: int) -> Iterator[Sample]:
        examples = generated_examples(task, tokenizer, annotated, seed, shard, variant)
        yield from partly_without_mask(examples, mask_off_share, seed, shard)

    return stream


def summary_source(part: MixturePart, mask_off_share: float = 0.0, sentence_dropout: float = 0.0) -> ShardedSource:
    """Annotated summaries of one kind (`training.summary_data`), with or without markers; see `generated_source`."""

    def stream(seed: int, shard: int, num_shards: int) -> Iterator[Sample]:
        examples = summary_examples(part, seed, shard, num_shards, sentence_dropout)
        yield from partly_without_mask(examples, mask_off_share, seed, shard)

    return stream


def mix(sources: dict[str, ShardedSource], shares: dict[str, float]) -> SampleStream:
    """One stream out of several, `shares` of the tokens each (any positive numbers).

    Raises:
        ValueError: a share names no source, or is not positive.
    """
    for name, share in shares.items():
        if name not in sources:
            raise ValueError(f"the mixture names '{name}'; there are: {', '.join(sorted(sources))}")
        if share <= 0:
            raise ValueError(f"the share of '{name}' is {share}, it must be positive")

    def stream(seed: int, shard: int, num_shards: int) -> Iterator[Sample]:
        iterators = {name: sources[name](seed, shard, num_shards) for name in shares}
        behind = dict.fromkeys(shares, 0.0)
        while True:
            name = min(behind, key=behind.get)
            sample = next(iterators[name])
            behind[name] += len(sample.ids) / shares[name]
            yield sample

    return stream
