"""What drafts bring at full size: `python -m training.bench_drafts` -> assets/results/drafts_<gpu>.json.

Physics. A step reads every weight once, and what its queries may see of keys and values; drafts add queries and
products, but hardly a byte, as long as all rows' queries are few against the operations that a byte takes time for
(some hundred). So at small batches a step of sixteen queries costs little more than one of a single query, and a text
that can be foreseen is written in as many fewer steps as drafts are right. With many rows the products cost as much
as they bring. Floors are the bytes of weights and of the tokens read, at the rate of a kernel that only reads.

Method. The shipped models write answers to expressions and summaries of articles (sentences of the project's own
examples; of a 6,000-token article the summary of its beginning). Their texts are forced through models of other shapes
with random weights, once per lane: plain text dense; the same with prompt lookup (n-grams of 3 to 1, the strongest
lossless baseline); text with names, self-selected; the same with drafts from declared spans. Drafts are proposed,
verified and kept on the device, in the captured step; whether one is right is decided by the recorded text. All lanes
take turns in one run over one cache; of a text some twenty steps are timed, by events on the device, and stand for the
steps in between, in which only trackers and drafts advance. Drafted lanes run in steps of every size that "auto"
chooses from, no drafts included; the one that answers soonest counts, and all are in the file. Beside them, at
most cells of the first shape, "auto" chooses itself while it decodes the whole text, step by step, so that what it
loses by trying sizes shows.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from selfspan_core.tasks.arithmetic.tree import MAX_OPERANDS
from training.bench.answer_cells import answer_cell
from training.bench.results import (
    Results,
    add_device,
    begin_results,
    check_out,
    check_rehearsal,
    count,
    find_machine,
    free_memory,
)
from training.bench.shapes import SHAPES, Machine, random_weights
from training.bench.texts import Text, expressions, name_of_articles, name_of_expressions, summaries, weights_of

SEED = 2024
LEAST_ARTICLE = 100
IMPORTANT = ("64 operands", "900-token articles")
REHEARSAL = (
    "python -m training.bench_drafts --device cpu --shapes tiny --operands 4 --articles 300 --num 2 --batches 2"
    " --samples 4"
)


def texts_of(arguments: argparse.Namespace, device: torch.device) -> Iterator[Text]:
    """Everything that is replayed."""
    for operands in arguments.operands:
        yield expressions(operands, arguments.num, arguments.seed, device)
    for num_tokens in arguments.articles:
        yield summaries(num_tokens, arguments.num, arguments.seed, device)


def cells_of(arguments: argparse.Namespace, texts: Sequence[Text], is_first: bool) -> Iterator[tuple[Text, int]]:
    """Text and batch of a shape's cells: the first shape in full, the others in the most important ones.

    In full one shape takes some seven minutes; `--shapes` puts another one first.
    """
    chosen = texts if is_first else [text for text in texts if text.name in arguments.others]
    for text in chosen:
        for batch in arguments.batches[:: 1 if is_first else 2]:
            yield text, batch


def has_auto(arguments: argparse.Namespace, text: Text, batch: int) -> bool:
    """Whether "auto" decodes a cell, every step: a minute or two each at larger shapes."""
    if arguments.auto != "some":
        return arguments.auto == "all"
    return text.name in arguments.others or batch in arguments.batches[::2]


def measure(arguments: argparse.Namespace, results: Results, machine: Machine) -> None:
    """All cells of all shapes."""
    texts = list(texts_of(arguments, machine.device))
    written = {
        text.name: {
            "answers": len(text.span),
            "prompt_tokens": sum(len(one.prompt) for one in text.span) / len(text.span),
            "tokens": sum(len(one.ids) for one in text.span) / len(text.span),
            "plain_tokens": sum(len(one.ids) for one in text.plain) / len(text.plain),
        }
        for text in texts
    }
    results.add("texts", written)
    markers = weights_of("arithmetic-span", torch.device("cpu")).model.tokenizer.markers
    longest = max(len(one.prompt) + len(one.ids) for text in texts for one in (*text.span, *text.plain))
    for shape in arguments.shapes:
        free_memory(machine)
        weights = random_weights(shape, machine.device, longest + 256)
        is_first = shape == arguments.shapes[0]
        for text, batch in cells_of(arguments, texts, is_first):
            with_auto = has_auto(arguments, text, batch)
            cell = answer_cell(weights, markers, machine, text, batch, arguments.samples, with_auto)
            results.add_cell(shape, "answers", cell)
            free_memory(machine)
        del weights


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"Without a GPU: {REHEARSAL}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add: Callable = parser.add_argument
    add("--shapes", nargs="+", default=["7B", "Llama-3-8B", "13B"], choices=list(SHAPES), help="of models")
    add("--operands", type=count, nargs="*", default=[24, 48, 64], help="numbers in a replayed expression")
    add("--articles", type=count, nargs="*", default=[500, 900, 1900, 6000], help="tokens of a summarized article")
    others = (
        "texts of all but the first shape, and with auto at every batch of that"
        f" (default, where they are measured: {', '.join(IMPORTANT)})"
    )
    add("--others", nargs="*", help=others)
    add("--auto", default="some", choices=("some", "all", "none"), help="cells that auto decodes")
    add("--batches", type=count, nargs="+", default=[1, 8, 32, 64, 128], help="rows")
    add("--num", type=count, default=32, help="texts of each kind")
    add("--samples", type=count, default=20, help="steps of a text that are timed")
    add("--seed", type=int, default=SEED)
    add_device(parser)
    add("--out", type=Path, help="default: assets/results/drafts_<gpu>.json; on a CPU runs/drafts_cpu.json")
    arguments = parser.parse_args(argv)
    check_rehearsal(parser, arguments, REHEARSAL)
    if any(not 2 <= number <= MAX_OPERANDS for number in arguments.operands):
        parser.error(f"--operands: 2 to {MAX_OPERANDS}")
    if any(number < LEAST_ARTICLE for number in arguments.articles):
        parser.error(f"--articles: {LEAST_ARTICLE} tokens or more")
    names = [name_of_expressions(n) for n in arguments.operands] + [name_of_articles(n) for n in arguments.articles]
    if not names:
        parser.error("--operands, --articles: at least one text")
    unknown = [name for name in arguments.others or () if name not in names]
    if unknown:
        parser.error(f"--others: no text is called {unknown[0]!r}; there are {', '.join(names)}")
    if arguments.others is None:
        arguments.others = [name for name in IMPORTANT if name in names]
    check_out(parser, arguments.out)
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    arguments = parse_arguments(argv)
    machine = find_machine(torch.device(arguments.device))
    results, out = begin_results(arguments, "drafts", machine, {"samples": arguments.samples})
    measure(arguments, results, machine)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
