"""Summaries over training tokens: `python -m training.summary_curve RUN-SPAN RUN-PLAIN --pairs DIR --data DIR`.

What more fine-tuning brings, and whether self-selected attention comes nearer to dense attention with it, as the paper
says of its summaries. The runs are those of `training.finetune` with `loop.snapshots`: one of a span adapter, one of a
plain adapter, with the same steps. Each pair of snapshots, and the last adapters, answer the articles of a set in all
three lanes. Where the GPU is on a machine that has packed data only: there `--decode-only FILE`, here `--decoded FILE`.
Writes `assets/results/summary_curve.json`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import place, write_whole
from training.evaluation import summary_evaluate

TASK = "summarize"
KEPT = (
    *("rouge1", "rouge2", "rougeL", "rougeL_interval", "mean_words"),
    *("malformed_steps_percent", "summaries_repeating_4_words_percent", "attended_percent_of_dense"),
)


def points_of(span: Path, plain: Path) -> list[tuple[int, Path, Path]]:
    """(tokens trained on, span adapter, plain adapter) of all steps that both runs kept.

    Raises:
        ValueError: a folder has no adapters, or the runs do not have the same steps.
    """
    found = [_adapters_in(folder) for folder in (span, plain)]
    if found[0].keys() != found[1].keys():
        raise ValueError(f"{span} was kept at {sorted(found[0])} tokens, {plain} at {sorted(found[1])}")
    return [(tokens, found[0][tokens], found[1][tokens]) for tokens in sorted(found[0])]


def _adapters_in(run: Path) -> dict[int, Path]:
    folders = [folder for folder in (run / "adapter", *run.glob("adapter-step-*")) if folder.is_dir()]
    if not folders:
        raise ValueError(f"{run} holds no adapter: it is the folder of a run of training.finetune")
    reports = [json.loads((folder / "training.json").read_text(encoding="utf-8")) for folder in folders]
    return {int(report["tokens"]): folder for folder, report in zip(folders, reports, strict=True)}


def decode(arguments: argparse.Namespace) -> dict:
    """What every pair of adapters writes."""
    points = []
    for tokens, span, plain in points_of(arguments.span, arguments.plain):
        with tempfile.TemporaryDirectory() as folder:
            for name, adapter in (("span", span), ("plain", plain)):
                (Path(folder) / f"{TASK}-{name}").symlink_to(adapter.resolve(), target_is_directory=True)
            print(f"{tokens:,} tokens", file=sys.stderr, flush=True)
            asked = summary_evaluate.parse_arguments(TASK, [*_words(arguments), "--adapters", folder])
            points.append({"tokens": tokens, "outputs": summary_evaluate.decode(asked)})
    return {"points": points, "dtype": arguments.dtype, "base": arguments.base, **provenance()}


def score(arguments: argparse.Namespace, decoded: dict) -> dict:
    """The figures of every point: lane -> setting -> what is kept of them."""
    asked = summary_evaluate.parse_arguments(TASK, [*_words(arguments), "--pairs", str(arguments.pairs)])
    points = []
    for point in decoded["points"]:
        results, _ = summary_evaluate.score(asked, point["outputs"])
        lanes = results["sets"][arguments.set]["lanes"]
        kept = {
            lane: {setting: {key: figures[key] for key in KEPT} for setting, figures in settings.items()}
            for lane, settings in lanes.items()
        }
        points.append({"tokens": point["tokens"], "lanes": kept})
    return {"set": arguments.set, "articles": results["sets"][arguments.set]["articles"], "points": points}


def _words(arguments: argparse.Namespace) -> list[str]:
    """The command line of `training.evaluate` that is meant."""
    words = ["--data", arguments.data, "--base", arguments.base, "--sets", arguments.set, "--dtype", arguments.dtype]
    words += ["--batch", str(arguments.batch), "--decode-only", "-", "--settings", *arguments.settings]
    return words + (["--device", arguments.device] if arguments.device else [])


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("span", type=Path, help="folder of a span adapter's run")
    add("plain", type=Path, help="folder of a plain adapter's run")
    add("--data", required=True, help="what training.summary_data wrote")
    add("--pairs", type=Path, help="folder of dev_* and test_* files; needed to score")
    add("--base", default="smollm2-135m")
    add("--set", default="test_cnndm")
    add("--settings", nargs="+", default=["short", "short rewritten"])
    add("--device", help="default: the GPU, if there is one")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    add("--batch", type=int, default=150, help="articles decoded at once")
    add("--decode-only", type=place, metavar="FILE", help="decode, write what came to FILE, score nothing")
    add("--decoded", type=Path, metavar="FILE", help="score what --decode-only wrote")
    add("--out", type=place, default="assets/results/summary_curve.json")
    arguments = parser.parse_args(argv)
    if arguments.pairs is None and arguments.decode_only is None:
        parser.error("--pairs is needed to score; only --decode-only does without")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Decode, score, or both."""
    arguments = parse_arguments(argv)
    try:
        if arguments.decoded is not None:
            decoded = json.loads(arguments.decoded.read_text(encoding="utf-8"))
            decoded["command"] += f" && {provenance()['command']}"
        else:
            decoded = decode(arguments)
        if arguments.decode_only is not None:
            write_whole(arguments.decode_only, json.dumps(decoded) + "\n")
            return
        origin = {key: value for key, value in decoded.items() if key != "points"}
        document = score(arguments, decoded) | origin
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    write_whole(arguments.out, json.dumps(document, indent=1) + "\n")
    print(f"wrote {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
