"""Measure summaries: `python -m training.evaluate --task summarize --data data/summarize --pairs DIR`.

Greedy decoding of the articles in the files dev_* and test_* of `--pairs`, three lanes: the plain adapter with dense
attention, the span adapter with the mask off, and with the mask on; each length with the decoding rules, without them,
and held to words of what is read. Beside them first sentences, random ones, and the oracle. Writes
`assets/results/<task>.json` and, for readers, a file of samples: of articles that may not be copied the figures
alone, of the project's own examples the text. `--readings` writes a file with all texts, for the machine it is made on.

Where the GPU is on a machine that has packed data only: there `--decode-only FILE`, here `--decoded FILE`.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import place, write_whole
from selfspan_core.models.places import place_of_base
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.registry import TASKS
from selfspan_core.tasks.summarize.examples import EXAMPLES
from training.data.summary_format import LONG_SET
from training.data.summary_source import Layout, PackedSummaries, Summary
from training.evaluation.lanes import EvaluationLane, lanes_of, weights_of
from training.evaluation.results import results_path
from training.summary_data import EVALUATION, EVALUATION_SETS, EXAMPLES_SET

READ_OF_LONG = 20
"""Long articles whose summaries are among the samples."""
NO_WEIGHTS = hashlib.sha256().hexdigest()
"""What earlier runs wrote of a base that they knew by its name; it says nothing of the weights."""


def parse_arguments(task: str, words: Sequence[str]) -> argparse.Namespace:
    """The command line of one task's evaluation, checked."""
    import torch

    from training.evaluation.summary_decode import SETTING_OF, SETTINGS

    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    names, lanes = [setting.name for setting in SETTINGS], [lane.name for lane in lanes_of(task)]
    parser.add_argument("--task", default=task, choices=list(TASKS))
    parser.add_argument("--data", default="data/summarize", help="what training.summary_data wrote")
    parser.add_argument(
        "--pairs", type=Path, help="folder of dev_* and test_* files (id, article, summary, references)"
    )
    parser.add_argument(
        "--sets",
        nargs="+",
        default=[*EVALUATION_SETS, EXAMPLES_SET],
        help=f"{LONG_SET}: long articles, for models of a long context (default: the others)",
    )
    parser.add_argument("--base", default="assets/base")
    parser.add_argument("--adapters", default="assets/adapters", help="folder that holds the adapters")
    parser.add_argument("--lanes", nargs="+", default=lanes, choices=lanes)
    parser.add_argument(
        "--settings", nargs="+", default=names, choices=list(SETTING_OF), help="rewritten: of adapters of both forms"
    )
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--batch", type=int, default=64 if on_gpu else 8, help="articles decoded at once")
    parser.add_argument(
        "--decode-only", type=place, metavar="FILE", help="decode, write what came to FILE, score nothing"
    )
    parser.add_argument(
        "--decoded", type=Path, nargs="+", metavar="FILE", help="score what --decode-only wrote, in one run or several"
    )
    parser.add_argument(
        "--baselines-only", action="store_true", help="first sentences, random ones, the oracle: no model"
    )
    parser.add_argument(
        "--readings", type=place, metavar="FILE", help="write all texts there, to be read and not shared"
    )
    parser.add_argument("--out", type=place, default=results_path(task))
    arguments = parser.parse_args(words)
    if arguments.batch < 1:
        parser.error("--batch is 1 or more")
    if arguments.pairs is None and arguments.decode_only is None:
        parser.error("--pairs is needed to score; only --decode-only does without")
    return arguments


def main(task: str, words: Sequence[str]) -> None:
    """Evaluate the task of that name as the words of the command line say."""
    arguments = parse_arguments(task, words)
    try:
        run(arguments)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


def run(arguments: argparse.Namespace) -> None:
    """Decode, score, or both."""
    decoded = None
    if arguments.decoded is not None:
        decoded = together([json.loads(file.read_text(encoding="utf-8")) for file in arguments.decoded])
    elif not arguments.baselines_only:
        decoded = {"outputs": decode(arguments), **origin_of(arguments)}
    if arguments.decode_only is not None:
        write_whole(arguments.decode_only, json.dumps(decoded) + "\n")
        print(f"wrote {arguments.decode_only}", file=sys.stderr)
        return
    results, readings = score(arguments, decoded["outputs"] if decoded else {})
    origin = {key: value for key, value in (decoded or {}).items() if key != "outputs"} or provenance()
    if arguments.decoded is not None:
        origin["command"] += f" && {provenance()['command']}"
    write_whole(arguments.out, json.dumps(results | origin, indent=2) + "\n")
    samples = arguments.out.with_name(f"{arguments.out.stem}_samples.md")
    write_whole(samples, sample_text(readings, with_texts=False))
    if arguments.readings is not None:
        write_whole(arguments.readings, sample_text(readings, with_texts=True))
    print(f"wrote {arguments.out} and {samples}", file=sys.stderr)


def together(parts: Sequence[dict]) -> dict:
    """What several runs decoded, as one: the same weights on the same kind of machine.

    Raises:
        ValueError: they differ in what has to be the same.
    """
    whole = parts[0] | {"command": " && ".join(part["command"] for part in parts), "outputs": {}, "weights_sha256": {}}
    for part in parts:
        for name in ("commit", "dirty", "dtype", "machine", "versions"):
            if part[name] != whole[name]:
                raise ValueError(f"what was decoded differs in {name}: {part[name]} and {whole[name]}")
        for folder, digest in part["weights_sha256"].items():
            if digest == NO_WEIGHTS:
                continue
            if whole["weights_sha256"].setdefault(folder, digest) != digest:
                raise ValueError(f"what was decoded differs in the weights of {folder}")
        for lane, settings in part["outputs"].items():
            held = whole["outputs"].setdefault(lane, {})
            for setting in settings:
                if setting in held:
                    raise ValueError(f"what was decoded: {lane}, {setting} is there twice")
            held.update(settings)
    return whole


def asked_lanes(arguments: argparse.Namespace) -> list[EvaluationLane]:
    """The lanes that are to answer."""
    return [lane for lane in lanes_of(arguments.task) if lane.name in arguments.lanes]


def origin_of(arguments: argparse.Namespace) -> dict:
    """Provenance as it is at the start, when code and weights are loaded."""
    digests = weights_of(arguments.base, arguments.adapters, asked_lanes(arguments))
    return {"dtype": arguments.dtype, "weights_sha256": digests} | provenance()


def decode(arguments: argparse.Namespace) -> dict:
    """Everything asked for, decoded: lane -> setting -> article."""
    from training.evaluation.summary_decode import SETTING_OF, Material, decode_all

    material = Material(
        arguments.base,
        arguments.adapters,
        arguments.data,
        arguments.sets,
        arguments.device,
        arguments.dtype,
        arguments.batch,
    )
    return decode_all(
        material,
        asked_lanes(arguments),
        [setting for name, setting in SETTING_OF.items() if name in arguments.settings],
    )


def score(arguments: argparse.Namespace, outputs: dict) -> tuple[dict, list[dict]]:
    """Figures of every set, lane and setting, and what there is to read."""
    from training.evaluation import summary_scores as scores

    tokenizer = SpanTokenizer.load(place_of_base(arguments.base))
    packed = PackedSummaries(arguments.data, tokenizer, EVALUATION)
    results: dict = {"metric": "F1 in percent, rouge-score with stemming", "sets": {}}
    readings = []
    for name in arguments.sets:
        items = items_of(arguments.pairs, name, packed, tokenizer)
        if not items:
            continue
        has_references = name not in (EXAMPLES_SET, LONG_SET)
        figures: dict = {"articles": len(items)}
        if has_references:
            figures["baselines"] = scores.baselines(items)
        for lane, settings in outputs.items():
            for setting, rows in settings.items():
                if any(item.name not in rows for item in items):
                    continue
                written = [written_of(rows[item.name], item, lane, setting, packed, tokenizer) for item in items]
                checked = scores.check_figures(items, written)
                texts = [one.text for one in written]
                rouge = {}
                if has_references:
                    rouge = scores.rouge_figures(items, texts) | {"rougeL_over": scores.over_leads(items, texts)}
                figures.setdefault("lanes", {}).setdefault(lane, {})[setting] = rouge | checked
                readings += reading_of(items, written, lane, setting)
        results["sets"][name] = figures
    return results, readings


def items_of(pairs: Path, name: str, packed: PackedSummaries, tokenizer: SpanTokenizer) -> list:
    """Articles of a set with their references; their sentences are those that were packed."""
    from training.evaluation.summary_scores import Item
    from training.summary_data import rows_of

    if name == EXAMPLES_SET:
        references = {f"{name}/{number}": () for number in range(len(EXAMPLES))}
    elif name == LONG_SET:
        references = {key: () for key in packed.ids if key.startswith(f"{name}/")}
    else:
        rows = rows_of(pairs / f"{name}.jsonl.xz")
        references = {f"{name}/{row['id']}": tuple(row.get("references") or [row["summary"]]) for row in rows}
    items = []
    for number, key in enumerate(packed.ids):
        if key in references:
            sentences = tuple(tokenizer.decode(ids.tolist()).strip() for ids in packed.segments(number))
            items.append(Item(key, sentences, references[key]))
    if len(items) != len(references):
        raise ValueError(
            f"the packed data holds {len(items)} of the {len(references)} articles of {name}: make it anew"
        )
    return items


def written_of(row: dict, item, lane: str, setting: str, packed: PackedSummaries, tokenizer: SpanTokenizer):
    """What a lane wrote, read back."""
    from selfspan_core.tasks.summarize.written import read_lines, read_steps
    from training.evaluation.summary_decode import SETTING_OF
    from training.evaluation.summary_scores import Written

    is_span = lane.startswith("span")
    if is_span:
        summary = Summary(packed.segments(packed.ids.index(item.name)), [])
        asked = SETTING_OF[setting]
        prompt = Layout(tokenizer, True, asked.form).render(summary, length=asked.length)
        steps = read_steps(row["ids"], prompt.prompt, tokenizer)
    else:
        steps = read_lines(row["ids"], tokenizer)
    is_finished = bool(row["ids"]) and row["ids"][-1] == tokenizer.markers.eos
    return Written(tuple(steps), len(row["ids"]), row["attended"], row["dense"], is_finished)


def reading_of(items: Sequence, written: Sequence, lane: str, setting: str) -> list[dict]:
    """What there is to read of one lane: all own examples, and of a set the best, the median and the worst three."""
    from training.evaluation.summary_scores import check_step, rouge

    rows = []
    for item, one in zip(items, written, strict=True):
        best = max(rouge(item.references, one.text)["rougeL"]) if item.references else None
        checked = [check_step(step, item.sentences) for step in one.steps]
        rows.append(
            {
                "lane": lane,
                "setting": setting,
                "article": item.name,
                "rougeL": best,
                "sentences": len(item.sentences),
                "reads": [list(step.reads) for step in one.steps],
                "copied": [step.is_copied for step in checked],
                "words": sum(step.num_words for step in checked),
                "attended_percent": 100 * one.attended / max(1, one.dense),
                "text": [step.text for step in one.steps],
                "reference": item.references[0] if item.references else None,
                "sources": [[item.sentences[read] for read in step.reads] for step in one.steps],
            }
        )
    if rows and rows[0]["rougeL"] is None:
        return rows if items[0].name.startswith(f"{EXAMPLES_SET}/") else rows[:: max(1, len(rows) // READ_OF_LONG)]
    rows.sort(key=lambda row: -row["rougeL"])
    middle = len(rows) // 2
    chosen = [*rows[:3], *rows[max(3, middle - 1) : middle + 2], *rows[-3:]]
    return [
        row | {"rank": rank} for row, rank in zip(chosen, ["best"] * 3 + ["median"] * 3 + ["worst"] * 3, strict=False)
    ]


def sample_text(readings: Sequence[dict], with_texts: bool) -> str:
    """Samples as Markdown. Without texts, articles of evaluation sets are shown by id and figures alone."""
    lines = ["# Samples of summaries", ""]
    if not with_texts:
        lines += [
            "The evaluation's articles belong to their publishers, and a summary out of their words does, too: of them "
            "figures are shown. The project's own examples are shown in full.",
            "",
        ]
    for row in readings:
        own = row["article"].startswith(f"{EXAMPLES_SET}/")
        rank = f", {row['rank']}" if "rank" in row else ""
        lines.append(f"## {row['article']}: {row['lane']}, {row['setting']}{rank}")
        score = "" if row["rougeL"] is None else f"ROUGE-L {row['rougeL']:.1f}, "
        reads = "; ".join(" ".join(str(read + 1) for read in step) or "–" for step in row["reads"])
        lines += [
            "",
            f"{score}{row['words']} words out of {row['sentences']} sentences, reads sentence {reads}; copied or "
            f"shortened: {sum(row['copied'])} of {len(row['copied'])}; {row['attended_percent']:.0f} % of the keys "
            "read.",
            "",
        ]
        if own or with_texts:
            for text, sources in zip(row["text"], row["sources"], strict=True):
                lines.append(f"* {text}")
                lines += [f"    * from: {source}" for source in sources if with_texts]
            if row["reference"]:
                lines.append(f"* reference: {' '.join(row['reference'].split())}")
            lines.append("")
    return "\n".join(lines)
