"""Adds ROUGE-L to the figures of summaries: `python -m training.anchors.score --pairs DIR --texts FILE --out FILE`.

The texts are what `training.anchors.study` wrote beside its figures; they may not be copied, so the figures alone go
into the results file. Intervals are 95 % ones over articles (bootstrap), also of the difference from the usual anchors.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from cuda_kernels.bench.whole_file import write_whole
from training.anchors.study import SET
from training.anchors.variants import USUAL
from training.bench.results import rounded
from training.data.summary_files import rows_of
from training.evaluation.summary_scores import interval, rouge


def scores_of(texts: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    """ROUGE-L of each summary, in percent, against the reference that it is nearest to.

    Raises:
        KeyError: an article has no references here.
    """
    return {name: max(rouge(references[name.partition("/")[2]], text)["rougeL"]) for name, text in texts.items()}


def add_scores(document: dict, texts: dict[str, dict[str, str]], references: dict[str, list[str]]) -> None:
    """Put ROUGE-L, and its difference from the usual anchors' of the same seed, into the cells of a results file."""
    scores = {key: scores_of(own, references) for key, own in texts.items() if own}
    for cell in document["cells"]:
        own = scores[f"{cell['variant']}/{cell['training_seed']}"]
        values = list(own.values())
        figures = cell["figures"][SET]
        figures["rouge_l"] = sum(values) / len(values)
        figures["rouge_l_interval"] = interval(values)
        usual = scores.get(f"{USUAL.name}/{cell['training_seed']}")
        if usual is not None and cell["variant"] != USUAL.name:
            differences = [own[name] - usual[name] for name in own]
            figures["rouge_l_above_usual"] = sum(differences) / len(differences)
            figures["rouge_l_above_usual_interval"] = interval(differences)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="folder of dev_* files (id, article, summary)")
    parser.add_argument("--texts", type=Path, default=Path("runs/anchors_summarize_texts.json"))
    parser.add_argument("--out", type=Path, default=Path("assets/results/anchors_summarize.json"))
    arguments = parser.parse_args(argv)
    document, texts = (json.loads(path.read_text(encoding="utf-8")) for path in (arguments.out, arguments.texts))
    rows = rows_of(arguments.pairs / f"{SET}.jsonl.xz")
    references = {str(row["id"]): row.get("references") or [row["summary"]] for row in rows}
    add_scores(document, texts, references)
    write_whole(arguments.out, json.dumps(rounded(document), indent=1) + "\n")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
