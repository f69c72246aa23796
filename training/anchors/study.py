"""Adapters with other anchors, side by side: `python -m training.anchors.study --task arithmetic` ->
assets/results/anchors_<task>.json.

Every variant of `anchors.variants` is trained from the same base, on the same problems or articles, with the same
settings and number of steps, for every seed; then asked the same, greedily, without decoding rules, under the span
mask. Of expressions the share of right answers counts; of articles ROUGE-L against editors' highlights (`--pairs`;
where the GPU is on a machine without them, `anchors.score` adds it from `--texts`). The adapters are not kept.
"""

import argparse
import json
import random
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import write_whole
from selfspan_core.models.loading import load_base, resize_for_tokenizer
from selfspan_core.models.model import SpanModel
from selfspan_core.models.places import place_of_base
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.spans.render import Rendered
from selfspan_core.tasks.registry import get_task
from selfspan_core.tasks.summarize.written import read_steps
from training.anchors.decode import Answer, decode
from training.anchors.spelling import SpelledTracker
from training.anchors.variants import VARIANTS, Laid, Variant, laid_out, training_examples
from training.bench.results import count, rounded
from training.data import sources
from training.data.generated import evaluation_set
from training.data.generated import examples as generated_examples
from training.data.summary_mixture import parts_of
from training.data.summary_source import Layout, PackedSummaries, summary_examples
from training.evaluation.problem_evaluate import output_text
from training.evaluation.summary_decode import articles_of
from training.finetune import FinetuneConfig, add_adapter, optimizers, save_adapter
from training.loop.config import load_config
from training.loop.folded_lora import fold_lora
from training.loop.packing import Sample
from training.loop.trainer import SampleStream, Trainer
from training.materials import DIFFERENCES
from training.summary_data import EVALUATION

SIZES = (8, 24)
SET = "dev_cnndm"
MAX_SUMMARY_TOKENS = 256
SEED = 2024
"""Of what is asked."""


@dataclass(frozen=True)
class Cell:
    """One adapter: its variant, and the seed of its training."""

    variant: Variant
    seed: int


@dataclass(frozen=True)
class Question:
    """What is asked of an adapter: its key in the results, the prompt, and how many tokens an answer may have."""

    key: str
    prompt: Laid
    most_tokens: int


@dataclass(frozen=True)
class Written:
    """An answer, the tracker that followed it, and what was asked."""

    answer: Answer
    tracker: SpelledTracker
    question: Question

    def text(self, tokenizer: SpanTokenizer) -> str:
        """What its steps say."""
        steps = read_steps(self.tracker.ids, self.question.prompt.inner.prompt, tokenizer)
        return " ".join(step.text for step in steps if step.text)


def stream_of(config: FinetuneConfig, variant: Variant, tokenizer: SpanTokenizer) -> SampleStream:
    """What a variant's adapter learns from: the usual examples, as it has them."""

    def as_variant(examples: Iterator[Rendered], seed: int, shard: int) -> Iterator[Sample]:
        laid = training_examples(examples, variant, tokenizer, seed, shard)
        return sources.partly_without_mask(laid, config.mask_off_share, seed, shard)

    task = get_task(config.task)
    if task.generator is not None:
        kind = DIFFERENCES if config.more_differences else ""
        return lambda seed, shard, num: as_variant(
            generated_examples(task, tokenizer, True, seed, shard, kind), seed, shard
        )
    parts = parts_of(config.data, config.mixture, tokenizer, True)
    by_kind: dict[str, sources.ShardedSource] = {
        key: lambda seed, shard, num, part=part: as_variant(
            summary_examples(part, seed, shard, num, config.sentence_dropout), seed, shard
        )
        for key, part in parts.items()
    }
    return sources.mix(by_kind, config.mixture)


def trained(config: FinetuneConfig, cell: Cell, tokenizer: SpanTokenizer, folder: Path) -> tuple[Path, dict]:
    """Train a cell's adapter; its folder, and what its training says of it."""
    loop = replace(config.loop, seed=cell.seed)
    torch.manual_seed(cell.seed)
    base = load_base(place_of_base(config.base), torch.float32, "sdpa")
    resize_for_tokenizer(base, tokenizer)
    model = add_adapter(base, tokenizer, config)
    if config.fold_lora:
        fold_lora(model)
    stream = stream_of(config, cell.variant, tokenizer)
    make = lambda one: optimizers(one, config)  # noqa: E731
    trainer = Trainer(model, make, stream, loop, folder / "run", tokenizer.pad_id)
    trainer.start(resume=False)
    began = time.monotonic()
    model = trainer.run()
    save_adapter(model, folder / "adapter", trainer.report())
    return folder / "adapter", {"tokens": trainer.report()["tokens"], "seconds": time.monotonic() - began}


def questions(
    arguments: argparse.Namespace, config: FinetuneConfig, variant: Variant, tokenizer: SpanTokenizer
) -> Iterator[tuple[Question, object]]:
    """What is asked, as a variant has it, each with the problem or the article's name."""
    rng = random.Random(f"asked {SEED}")
    task = get_task(config.task)
    if task.generator is not None:
        for size in arguments.sizes:
            for problem in evaluation_set(task, size, arguments.n, SEED):
                names = random.Random(rng.random())
                worked = laid_out(task.render(problem, tokenizer, True, with_steps=True), variant, tokenizer, names)
                prompt = laid_out(task.render(problem, tokenizer, True), variant, tokenizer, names)
                yield Question(str(size), prompt, len(worked.rendered.ids) - worked.rendered.prompt.num_tokens), problem
        return
    folder = config.data if isinstance(config.data, str) else next(iter(config.data.values()))
    packed = PackedSummaries(folder, tokenizer, EVALUATION)
    layout = Layout(tokenizer, True)
    for name, article in list(articles_of(packed, [SET]).items())[: arguments.n]:
        prompt = laid_out(layout.render(article, length="short"), variant, tokenizer, random.Random(rng.random()))
        yield Question(SET, prompt, MAX_SUMMARY_TOKENS), name


def answered(model: SpanModel, asked: Sequence[Question], tokenizer: SpanTokenizer, batch: int) -> list[Written]:
    """All answers, in the order of the questions; those of like length are decoded together."""
    order = sorted(range(len(asked)), key=lambda number: len(asked[number].prompt.rendered.ids))
    found: dict[int, Written] = {}
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        trackers = [asked[number].prompt.tracker(tokenizer) for number in chosen]
        prompts = [asked[number].prompt.rendered.ids for number in chosen]
        most = max(asked[number].most_tokens for number in chosen)
        rows = decode(model.hf, prompts, trackers, tokenizer.markers.eos, most)
        found |= dict(zip(chosen, map(Written, rows, trackers, [asked[number] for number in chosen]), strict=True))
    return [found[number] for number in range(len(asked))]


def figures_of(written: Sequence[Written], right: Sequence[bool] | None) -> dict:
    """What answers to one kind of question come to; `right` of those that are right or wrong."""
    malformed = sum(one.tracker.num_malformed for one in written)
    steps = sum(one.tracker.num_steps for one in written)
    share = {} if right is None else {"right": sum(right), "exact_percent": 100 * sum(right) / len(right)}
    return share | {
        "n": len(written),
        "mean_tokens": statistics.fmean(len(one.answer.ids) for one in written),
        "kv_read_percent": 100
        * sum(one.answer.attended_tokens for one in written)
        / sum(one.answer.dense_tokens for one in written),
        "malformed_percent_of_steps": 100 * malformed / max(steps, 1),
    }


def measured(
    arguments: argparse.Namespace, config: FinetuneConfig, cell: Cell, tokenizer: SpanTokenizer, adapter: Path
) -> tuple[dict, dict[str, str]]:
    """Figures of an adapter by kind of question, and texts of articles' summaries."""
    model = SpanModel.load(config.base, adapter, arguments.device, getattr(torch, arguments.dtype), tokenizer)
    model.hf.set_attn_implementation("sdpa")
    pairs = list(questions(arguments, config, cell.variant, tokenizer))
    if not pairs:
        raise ValueError(f"{config.data} holds no articles of {SET}")
    written = answered(model, [question for question, _ in pairs], tokenizer, arguments.batch)
    task, texts, figures = get_task(config.task), {}, {}
    of_key: dict[str, list[tuple[Written, object]]] = {}
    for (question, about), one in zip(pairs, written, strict=True):
        of_key.setdefault(question.key, []).append((one, about))
    for key, rows in of_key.items():
        right = None
        if task.generator is not None:
            answers = [task.answer(output_text(one.tracker.ids, tokenizer)) for one, _ in rows]
            right = [task.check(about, answer) for (_, about), answer in zip(rows, answers, strict=True)]  # type: ignore[arg-type]
        else:
            texts |= {str(about): one.text(tokenizer) for one, about in rows}
        figures[key] = figures_of([one for one, _ in rows], right)
    return figures, texts


def run(arguments: argparse.Namespace) -> None:
    """All cells; the file holds what is finished."""
    config = load_config(arguments.config, FinetuneConfig)
    tokenizer = SpanTokenizer.load(place_of_base(config.base))
    chosen = [one for one in VARIANTS[config.task] if one.name in arguments.variants]
    cells = [Cell(variant, seed) for seed in arguments.seeds for variant in chosen]
    document: dict = {"task": config.task, "config": asdict(config), "seed": SEED, "cells": []} | provenance()
    texts: dict[str, dict[str, str]] = {}
    for number, cell in enumerate(cells, start=1):
        folder = Path(config.run) / f"{cell.variant.name}-{cell.seed}".replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        adapter, training = trained(config, cell, tokenizer, folder)
        figures, own_texts = measured(arguments, config, cell, tokenizer, adapter)
        texts[f"{cell.variant.name}/{cell.seed}"] = own_texts
        shutil.rmtree(folder, ignore_errors=True)
        document["cells"].append(
            {"variant": cell.variant.name, "training_seed": cell.seed, "training": training, "figures": figures}
        )
        write_whole(arguments.out, json.dumps(rounded(document), indent=1) + "\n")
        if own_texts:
            write_whole(arguments.texts, json.dumps(texts, indent=1) + "\n")
        print(f"[{number}/{len(cells)}] {cell.variant.name}, seed {cell.seed}: {rounded(figures)}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=list(VARIANTS))
    parser.add_argument("--config", help="default: training/configs/anchors-<task>.yaml")
    parser.add_argument("--variants", nargs="+", help="default: all of the task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--sizes", type=count, nargs="+", default=list(SIZES), help="numbers in an expression")
    parser.add_argument("--n", type=count, default=200, help="expressions of each size, or articles")
    parser.add_argument("--batch", type=count, default=100, help="rows decoded at once")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, help="default: assets/results/anchors_<task>.json")
    parser.add_argument("--texts", type=Path, help="of summaries, for training.anchors.score; default: in runs/")
    arguments = parser.parse_args(argv)
    known = [one.name for one in VARIANTS[arguments.task]]
    arguments.variants = arguments.variants or known
    if unknown := set(arguments.variants) - set(known):
        parser.error(f"no variants of {arguments.task}: {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    arguments.config = arguments.config or f"training/configs/anchors-{arguments.task}.yaml"
    arguments.out = arguments.out or Path(f"assets/results/anchors_{arguments.task}.json")
    arguments.texts = arguments.texts or Path(f"runs/anchors_{arguments.task}_texts.json")
    run(arguments)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
