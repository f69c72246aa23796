"""A small folder of made-up news, encyclopedia articles and pairs, and the packed summaries made of it."""

import json
import lzma
import random
from pathlib import Path

from training import summary_data

SUBJECTS = ("The council", "A farmer", "The bakery", "Police", "The museum", "An engineer", "The school", "A pilot")
VERBS = ("closed", "opened", "painted", "repaired", "moved", "sold", "cleaned", "photographed")
OBJECTS = ("the old bridge", "a wooden boat", "the market hall", "two fire engines", "the tall tower", "a red tram")
TAILS = ("on Monday", "after a long winter", "for the second time", "without any help", "in front of a crowd")
ADDITIONS = ("", "", ", officials said", ", which surprised many", ", the mayor said on Tuesday")


def sentence(rng: random.Random) -> str:
    """A sentence of news."""
    words = (rng.choice(SUBJECTS), rng.choice(VERBS), rng.choice(OBJECTS), rng.choice(TAILS))
    return " ".join(words) + rng.choice(ADDITIONS) + "."


def article(rng: random.Random, num: int) -> list[str]:
    """Sentences, none twice."""
    found: dict[str, None] = {}
    while len(found) < num:
        found[sentence(rng)] = None
    return list(found)


def write_jsonl(file: Path, rows: list[dict]) -> None:
    """Write xz-compressed JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(file, "wt", encoding="utf-8", preset=0) as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def reference_of(text: str) -> str:
    """What a highlight would make of a sentence."""
    return text.split(",")[0].rstrip(".").replace("The ", "A ") + "."


def write_texts(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write folders `text` and `pairs`; returns them."""
    rng = random.Random(seed)
    news, pairs, dev, several, events = [], [], [], [], []
    for i in range(60):
        sentences = article(rng, 14)
        news.append({"id": f"n{i}", "title": reference_of(sentences[1])[:-1], "text": " ".join(sentences)})
    for i in range(40):
        sentences = article(rng, 12)
        summary = "\n".join(map(reference_of, sentences[: 2 + i % 2]))
        summary += "\nNothing of this stands anywhere above." * (i % 2)
        pairs.append({"id": f"p{i}", "article": " ".join(sentences), "summary": summary})
    for i in range(3):
        sentences = article(rng, 12)
        dev.append({"id": f"d{i}", "article": " ".join(sentences), "summary": reference_of(sentences[0])})
        several.append(dev[-1] | {"references": [reference_of(s) for s in sentences[:3]]})
    for event, num in (("e0", 3), ("e1", 2), ("e2", 1), ("e5", 1)):
        articles = [article(rng, 10) for _ in range(num)]
        summary = reference_of(articles[0][0]) + "\n" + reference_of(articles[-1][1])
        events += [
            {"id": f"{event}-{i}", "event": event, "article": " ".join(one), "summary": summary}
            for i, one in enumerate(articles)
        ]
    copied = {"id": "copy", "article": "Well. " + dev[0]["article"], "summary": dev[0]["summary"]}
    wiki = [{"id": f"w{i}", "text": f"{news[i]['title']}.\n{news[i]['text']}"} for i in range(20)]
    write_jsonl(folder / "text" / "news-0.jsonl.xz", news)
    write_jsonl(folder / "text" / "wikipedia-0.jsonl.xz", wiki)
    write_jsonl(folder / "pairs" / "train_cnn_some.jsonl.xz", [*pairs, copied])
    write_jsonl(folder / "pairs" / "train_allsides_some.jsonl.xz", events)
    for name in summary_data.EVALUATION_SETS:
        write_jsonl(folder / "pairs" / f"{name}.jsonl.xz", several if name.endswith("summeval") else dev)
    return folder / "text", folder / "pairs"
