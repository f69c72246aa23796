"""Summaries to learn from: articles annotated with steps, as ids in small packed files.

    python -m training.summary_data --text DIR --pairs DIR --tokenizer assets/base --out data/summarize

The folders are those of `training.text_data`; nothing is downloaded. Sentences are split, aligned and shortened here,
once: training reads ids and needs neither the texts nor a sentence splitter, so that `--out` is all that a machine with
GPUs has to be given. Kinds of summaries (shares of a `mixture` in the configuration):

    highlights   news articles with their highlights            (train_cnndm, train_cnn_highlights_*)
    roundups     news articles with a neutral round-up          (train_allsides_*)
    extracts     news articles with extracted sentences         (train_bbc_*)
    briefs       articles with one sentence that says it all    (all other train_* files)
    titles       news articles: what the title draws on         (news-*)
    gaps         news articles: the sentences that say most of what the others say, the title's first among them
    leads        encyclopedia articles: what the first paragraph draws on in the rest   (wikipedia-*)
    choices      of highlights, roundups and extracts: two or three sentences that together say much of all of it,
                 drawn again and again, what says more more often
    openings     of the same and of news with titles: one such sentence (of the title's: what it draws on), and the
                 article's first one or two others. That news says first what matters is the strongest sign there is
                 (Zhu et al., arXiv 1912.11602, train on it alone)

With `--form rewrite` the bodies are the references' own sentences, and kinds without such are left out.

One document in 200 is held out, by the hash that `training.text_data` uses. Documents that share a passage with a file
named dev_* or test_* are left out; those files become `evaluation`: prompts alone, for `training.evaluate`.
"""

import argparse
import io
import itertools
import json
import lzma
import multiprocessing
import os
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from selfspan_core.models.tokenizer import SpanTokenizer, TextCodec
from selfspan_core.tasks.summarize.examples import EXAMPLES
from selfspan_core.tasks.summarize.form import MAX_CONTEXT, MAX_LEARNED_TOKENS, MAX_SUMMARY_TOKENS
from selfspan_core.tasks.summarize.task import segments_of
from training.text_data import HELDOUT_SHARE, SPLITS, share_of, split_of

FORMS = ("shorten", "rewrite")
KINDS = ("highlights", "roundups", "extracts", "briefs", "titles", "gaps", "leads", "choices", "openings")
CHOSEN_FROM = ("highlights", "roundups", "extracts")
NUM_CHOICES = {2: 8, 3: 4}
"""How many are drawn of so many sentences."""
NUM_OPENINGS = {1: 2, 2: 2}
"""How many have so many sentences from the article's beginning, beside the one that is chosen."""
REWRITTEN = ("highlights", "roundups", "briefs", "leads")
META = "meta.json"
EVALUATION = "evaluation"
EVALUATION_SETS = ("dev_cnndm", "test_cnndm", "test_summeval")
EXAMPLES_SET = "examples"
MAX_STEPS = 8
MAX_ARTICLE_TOKENS = MAX_CONTEXT - MAX_SUMMARY_TOKENS - 64
MAX_NEWS_TOKENS = (280, 900)
MAX_LEAD_TOKENS = 700
LEADS_SHARE = 0.4
MIN_SENTENCES = 4
MIN_TITLE_COVERAGE, MIN_LEAD_COVERAGE, MIN_REWRITE_COVERAGE = 0.5, 0.5, 0.65
SECOND_SENTENCE_GAIN = 0.34
NUM_GAPS = (2, 3, 3, 4)
PASSAGE_WORDS, PASSAGE_STRIDE, MAX_PASSAGES = 13, 4, 2
NO_READ = 2**16 - 1


@dataclass(frozen=True)
class Target:
    """One summary of a document: kind, and steps as (places of the sentences read, text)."""

    kind: str
    steps: tuple[tuple[tuple[int, ...], str], ...]


@dataclass(frozen=True)
class Document:
    """An article in sentences, with what there is to learn from it."""

    id: str
    sentences: tuple[str, ...]
    targets: tuple[Target, ...]


@dataclass
class Packed:
    """Documents as arrays. Lists while they are made, arrays once they are read.

    Attributes:
        tokens: ids of all segments end to end.
        segment_lengths: of every segment; document_segments: how many each document has.
        target_documents, target_kinds, target_steps: per summary its document, its kind (a place in KINDS), its number
            of steps.
        step_reads: per step two places of segments, NO_READ where there is no second.
        step_lengths, step_tokens: the bodies.
        ids: of the documents.
    """

    tokens: list = field(default_factory=list)
    segment_lengths: list = field(default_factory=list)
    document_segments: list = field(default_factory=list)
    target_documents: list = field(default_factory=list)
    target_kinds: list = field(default_factory=list)
    target_steps: list = field(default_factory=list)
    step_reads: list = field(default_factory=list)
    step_lengths: list = field(default_factory=list)
    step_tokens: list = field(default_factory=list)
    ids: list = field(default_factory=list)

    def add(self, document: Document, codec: TextCodec) -> None:
        """Append a document, encoded."""
        for ids in codec.encode_batch(f" {sentence}" for sentence in document.sentences):
            self.tokens += ids
            self.segment_lengths.append(len(ids))
        for target in document.targets:
            self.target_documents.append(len(self.ids))
            self.target_kinds.append(KINDS.index(target.kind))
            self.target_steps.append(len(target.steps))
            for reads, text in target.steps:
                ids = codec.encode(f" {text}")
                self.step_reads.append((*reads, NO_READ)[:2])
                self.step_lengths.append(len(ids))
                self.step_tokens += ids
        self.document_segments.append(len(document.sentences))
        self.ids.append(document.id)

    def arrays(self, dtype: np.dtype) -> dict[str, np.ndarray]:
        """Everything in the smallest types that hold it."""
        types = {"target_kinds": np.uint8, "target_steps": np.uint8, "target_documents": np.uint32}
        types |= {"tokens": dtype, "step_tokens": dtype}
        arrays = {
            name: np.array(values, types.get(name, np.uint16)) for name, values in vars(self).items() if name != "ids"
        }
        arrays["step_reads"] = arrays["step_reads"].reshape(-1, 2)
        return arrays | {"ids": np.array(self.ids, dtype=np.str_)}


# -------------------------------------------------------------------------------------------------- making documents


class Maker:
    """Turns documents of a folder into annotated ones.

    Args:
        codec: of the tokenizer; its lengths decide where a long article ends.
        form: one of FORMS.
        passages: word runs of the dev and test articles, which no document to train on may share.
    """

    def __init__(self, codec: TextCodec, form: str, passages: frozenset[int]) -> None:
        # Sentences are split, and stems made, on the machine that prepares data only.
        from selfspan_core.tasks.summarize import text as summarize_text
        from training.data import summary_annotation, summary_shorten, summary_words

        self._text, self._annotation, self._shorten = summarize_text, summary_annotation, summary_shorten
        self._words = summary_words
        self._codec, self._form, self._passages = codec, form, passages
        self.counts: Counter = Counter()

    def make(self, source: str, row: dict) -> Document | None:
        """A document with its summaries; None where there is nothing to learn from it."""
        kind = kind_of(source)
        if kind == "leads" and share_of(str(row["id"]), "leads") >= LEADS_SHARE:
            return None
        body = str(row.get("article") or row.get("text") or "")
        if self._is_known(body):
            self.counts[f"{kind}: shares a passage with dev or test"] += 1
            return None
        if kind == "leads":
            return self._lead(row, body)
        if kind == "titles":
            # Far more than is kept; to split the rest would be for nothing.
            return self._news(row, self.sentences(body[: 10 * MAX_NEWS_TOKENS[1]]))
        sentences = self.sentences(body)
        sentences = self.beginning(sentences, MAX_LEARNED_TOKENS)
        if len(sentences) < MIN_SENTENCES:
            return None
        references = self.sentences(str(row["summary"]))
        steps = self._steps(kind, sentences, references, 0.0)
        targets = [Target(kind, steps)] if steps else []
        if steps and kind in CHOSEN_FROM and self._form == "shorten":
            targets += self._choices(str(row["id"]), sentences, references)
        return self._document(row, sentences, targets)

    def _choices(self, key: str, sentences: Sequence[str], references: Sequence[str]) -> Iterator[Target]:
        """Two or three steps that stand for the whole of a summary, some of them from the article's beginning."""
        article, allowed, wanted = self._annotation.Article(sentences), self._allowed(sentences), " ".join(references)
        shortened: dict[int, str] = {}
        for size, count in NUM_CHOICES.items():
            rng = random.Random(f"{key} {size}")
            for places in self._annotation.draw_choices(article, references, size, count, rng, allowed):
                for place in places:
                    if place not in shortened:
                        shortened[place] = self._shorten.shorten(sentences[place], wanted)
                yield Target("choices", tuple(((place,), shortened[place]) for place in places))
        for num_first, count in NUM_OPENINGS.items():
            rng = random.Random(f"{key} opening {num_first}")
            for (place,) in self._annotation.draw_choices(article, references, 1, count, rng, allowed):
                chosen = ((place,), self._shorten.shorten(sentences[place], wanted))
                yield Target("openings", self._opening(sentences, chosen, num_first, allowed))

    def _opening(self, sentences: Sequence[str], chosen: tuple, num_first: int, allowed: Sequence[bool]) -> tuple:
        """A chosen step and steps of the first so many other sentences, in the article's order."""
        first = [place for place in range(len(sentences)) if allowed[place] and place not in chosen[0]][:num_first]
        others = [((place,), self._shorten.shorten(sentences[place], None)) for place in first]
        return tuple(sorted([chosen, *others]))

    def _document(self, row: dict, sentences: Sequence[str], targets: Sequence[Target]) -> Document | None:
        for target in targets:
            self.counts[f"{target.kind}: summaries"] += 1
            self.counts[f"{target.kind}: steps"] += len(target.steps)
        return Document(str(row["id"]), tuple(sentences), tuple(targets)) if targets else None

    def sentences(self, text: str) -> list[str]:
        """Sentences of a text."""
        return self._text.sentences_of(self._text.clean(text))

    def beginning(self, sentences: Sequence[str], max_tokens: int) -> list[str]:
        """As many sentences from the start as fit."""
        kept, room = [], max_tokens
        for sentence, ids in zip(sentences, self._codec.encode_batch(f" {s}" for s in sentences), strict=True):
            room -= len(ids) + 1
            if room < 0:
                break
            kept.append(sentence)
        return kept

    def _allowed(self, sentences: Sequence[str]) -> list[bool]:
        """Which sentences a summary may be made of: whole ones, with a verb, of a length that can be read.

        Half of a quotation is none: without its other half it reads as if the article said it.
        """
        return [
            self._text.is_sentence(sentence)
            and 4 <= len(words := sentence.split()) <= 70
            and any(self._words.is_finite(word.strip("\"“”'‘’.,;:()")) for word in words)
            and sentence.count('"') % 2 == 0
            and sentence.count("“") == sentence.count("”")
            and " MORE " not in sentence
            and "http" not in sentence
            for sentence in sentences
        ]

    def _steps(self, kind: str, sentences: Sequence[str], references: Sequence[str], min_coverage: float) -> tuple:
        """Steps for the sentences of a summary: a sentence that several draw on is cited once, for all of them."""
        annotation = self._annotation
        article = annotation.Article(sentences)
        rewrite = self._form == "rewrite"
        min_coverage = MIN_REWRITE_COVERAGE if rewrite else max(min_coverage, annotation.MIN_COVERAGE)
        found = annotation.annotate(article, references, self._allowed(sentences), min_coverage)
        self.counts[f"{kind}: reference sentences"] += len(references)
        self.counts[f"{kind}: of them unsupported"] += found.num_unsupported
        if rewrite:
            return tuple((step.reads, step.reference) for step in found.steps)[:MAX_STEPS]
        wanted: dict[int, list[str]] = defaultdict(list)
        order: list[tuple[int, ...]] = []
        for step in found.steps:
            reads = self._worthwhile(article, step)
            new = tuple(read for read in reads if read not in wanted)
            for read in reads:
                wanted[read].append(step.reference)
            if new:
                order.append(new)
        return tuple((reads, self._shortened(sentences, reads, wanted)) for reads in order)[:MAX_STEPS]

    def _worthwhile(self, article, step) -> tuple[int, ...]:
        """Both sentences of an alignment, if the second is worth the words that it costs; else the better one."""
        if len(step.reads) < 2:
            return step.reads
        wanted = self._annotation.content(step.reference)
        held = [wanted & article.contents[read] for read in step.reads]
        best = max((0, 1), key=lambda place: len(held[place]))
        gain = len(held[1 - best] - held[best])
        is_worth = gain >= SECOND_SENTENCE_GAIN * len(wanted) and abs(step.reads[0] - step.reads[1]) <= 3
        return step.reads if is_worth else (step.reads[best],)

    def _shortened(self, sentences: Sequence[str], reads: Sequence[int], wanted: dict[int, list[str]]) -> str:
        texts = [self._shorten.shorten(sentences[read], " ".join(wanted[read])) for read in reads]
        self.counts["sentences cited"] += len(reads)
        self.counts["of them shortened"] += sum(
            text != sentences[read] for text, read in zip(texts, reads, strict=True)
        )
        return " ".join(texts)

    def _news(self, row: dict, sentences: list[str]) -> Document | None:
        """What the title draws on, and the sentences that say most of what the others say."""
        key = str(row["id"])
        title = self._text.clean(str(row.get("title") or "")).replace("\n", " ")
        # Some texts begin with their title: to find it there teaches nothing.
        while sentences and self._annotation.content(sentences[0]) <= self._annotation.content(title):
            sentences = sentences[1:]
        fewest, most = MAX_NEWS_TOKENS
        sentences = self.beginning(sentences, int(fewest + share_of(key, "length") * (most - fewest)))
        if len(sentences) < MIN_SENTENCES + 2:
            return None
        steps = self._steps("titles", sentences, [title], MIN_TITLE_COVERAGE) if title else ()
        targets = [Target("titles", steps)] if steps else []
        first = steps[0] if steps and len(steps[0][0]) == 1 else None
        gaps = self._gaps(sentences, first, NUM_GAPS[int(share_of(key, "gaps") * len(NUM_GAPS))])
        if first:
            num_first = list(NUM_OPENINGS)[int(share_of(key, "openings") * len(NUM_OPENINGS))]
            targets.append(Target("openings", self._opening(sentences, first, num_first, self._allowed(sentences))))
        return self._document(row, sentences, [*targets, *([Target("gaps", gaps)] if gaps else [])])

    def _gaps(self, sentences: Sequence[str], first, num: int) -> tuple:
        """Sentences whose words the rest of the article uses most, chosen one by one, in the article's order.

        Source: PEGASUS (arXiv 1912.08777), section 3.1, "principal" sentences, chosen sequentially.
        """
        contents = self._annotation.Article(sentences).contents
        allowed = [
            is_allowed and not self._shorten.is_pronoun_led(sentence)
            for is_allowed, sentence in zip(self._allowed(sentences), sentences, strict=True)
        ]
        # In how many of the sentences not yet chosen a word stands.
        rest = Counter(word for words in contents for word in words)
        chosen: list[int] = []
        have: set[str] = set()
        while len(chosen) < num:
            if first and not chosen:
                best = first[0][0]
            else:
                places = [place for place in range(len(sentences)) if allowed[place] and place not in chosen]
                if not places:
                    break
                best = max(places, key=lambda place: overlap_with_rest(have | contents[place], contents[place], rest))
            chosen.append(best)
            have |= contents[best]
            rest.subtract(contents[best])
        if len(chosen) < 2:
            return ()
        return tuple(
            first if first and place == first[0][0] else ((place,), self._shorten.shorten(sentences[place], None))
            for place in sorted(chosen)
        )

    def _lead(self, row: dict, body: str) -> Document | None:
        """The first paragraph of an encyclopedia article as the summary of the rest."""
        lead, _, rest = body.partition("\n")
        sentences = self.beginning(self.sentences(rest), MAX_LEAD_TOKENS)
        if len(sentences) < MIN_SENTENCES + 2:
            return None
        steps = self._steps("leads", sentences, self.sentences(lead)[:MAX_STEPS], MIN_LEAD_COVERAGE)
        return self._document(row, sentences, [Target("leads", steps)] if steps else [])

    def _is_known(self, text: str) -> bool:
        words = text.lower().split()
        last = len(words) - PASSAGE_WORDS
        runs = (words[at : at + PASSAGE_WORDS] for at in range(0, last, PASSAGE_STRIDE))
        # One or two may be what a publisher prints below everything.
        return sum(hash_of(run) in self._passages for run in runs) > MAX_PASSAGES


def overlap_with_rest(summary: set[str], candidate: set[str], rest: Counter) -> float:
    """ROUGE-1 F1 of a summary with what is left of the article once its newest sentence is taken out."""
    num_common = sum(rest[word] > (word in candidate) for word in summary)
    return 2 * num_common / (len(summary) + rest.total() - len(candidate))


def kind_of(source: str) -> str:
    """The kind of summaries that a source's documents have."""
    if source.startswith("train_cnn"):
        return "highlights"
    if source.startswith("train_allsides"):
        return "roundups"
    if source.startswith("train_bbc"):
        return "extracts"
    if source.startswith("train_"):
        return "briefs"
    return "leads" if source.startswith("wikipedia") else "titles"


def hash_of(words: Sequence[str]) -> int:
    """A number for a run of words, the same in every process."""
    return int(share_of(" ".join(words), "passage") * 2**53)


def passages_of(files: Iterable[Path]) -> frozenset[int]:
    """All runs of PASSAGE_WORDS words of the articles of some files."""
    found = set()
    for file in files:
        for row in rows_of(file):
            words = row["article"].lower().split()
            found.update(hash_of(words[at : at + PASSAGE_WORDS]) for at in range(len(words) - PASSAGE_WORDS + 1))
    return frozenset(found)


def rows_of(file: Path) -> Iterator[dict]:
    """Rows of a file of xz-compressed JSON lines."""
    with lzma.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


# ---------------------------------------------------------------------------------------------------------- the command


_maker: Maker | None = None  # one per worker process, set when the process starts


def _start_worker(codec_json: str, form: str, passages: frozenset[int]) -> None:
    global _maker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _maker = Maker(TextCodec(codec_json), form, passages)


def _make(job: tuple[str, list[dict]]) -> tuple[list[tuple[str, Document]], Counter]:
    source, rows = job
    _maker.counts.clear()
    made = [(split_of(row, HELDOUT_SHARE), _maker.make(source, row)) for row in rows]
    return [(split, document) for split, document in made if document is not None], Counter(_maker.counts)


def jobs_of(files: Sequence[tuple[str, Path]], size: int = 200) -> Iterator[tuple[str, list[dict]]]:
    """(source, some rows of it), in order."""
    for source, file in files:
        rows = []
        for row in rows_of(file):
            rows.append(row)
            if len(rows) == size:
                yield source, rows
                rows = []
        if rows:
            yield source, rows


def source_files(text: Path | None, pairs: Path | None, form: str) -> tuple[list[tuple[str, Path]], list[Path]]:
    """(source, file) of what is trained on, and the dev and test files.

    Raises:
        FileNotFoundError: there is nothing to train on.
    """
    listed = [*(sorted(text.glob("*.jsonl.xz")) if text else []), *(sorted(pairs.glob("*.jsonl.xz")) if pairs else [])]
    named = [(file.name.split(".")[0], file) for file in listed]
    kept_out = [file for name, file in named if name.startswith(("dev_", "test_"))]
    files = [(name, file) for name, file in named if file not in kept_out]
    if form == "rewrite":
        files = [(name, file) for name, file in files if kind_of(name) in REWRITTEN]
    if not files:
        raise FileNotFoundError(f"no *.jsonl.xz files in {text}, no train_*.jsonl.xz files in {pairs}")
    return files, kept_out


def run(text: Path | None, pairs: Path | None, tokenizer: str, out: Path, form: str, workers: int) -> dict:
    """Make the files and print what became of each kind; returns the meta data."""
    started = time.perf_counter()
    files, kept_out = source_files(text, pairs, form)
    loaded = SpanTokenizer.load(tokenizer)
    dtype = np.dtype(np.uint16 if loaded.vocab_size <= 1 << 16 else np.uint32)
    out.mkdir(parents=True, exist_ok=True)
    (out / META).unlink(missing_ok=True)
    write(out / f"{EVALUATION}.npz.xz", evaluation_prompts(kept_out, loaded.codec).arrays(dtype))
    packed, counts = {split: Packed() for split in SPLITS}, Counter()
    arguments = (loaded.codec.to_json(), form, passages_of(kept_out))
    jobs = jobs_of(files)
    # A fresh interpreter each: forking a process that has threads may hang.
    with multiprocessing.get_context("spawn").Pool(max(1, workers), _start_worker, arguments) as pool:
        # Some at a time: the pool by itself would read all texts at once.
        while batch := list(itertools.islice(jobs, 8 * workers)):
            for documents, counted in pool.map(_make, batch, chunksize=1):
                counts += counted
                for split, document in documents:
                    packed[split].add(document, loaded.codec)
            num_made = sum(len(part.ids) for part in packed.values())
            print(f"{batch[-1][0]}: {num_made:,} documents so far, {time.perf_counter() - started:.0f} s", flush=True)
    sizes = {}
    for split in SPLITS:
        sizes[split] = write(out / f"{split}.npz.xz", packed[split].arrays(dtype))
        kinds = Counter(KINDS[kind] for kind in packed[split].target_kinds)
        counts.update({f"{split}: {kind}": number for kind, number in kinds.items()})
        counts.update({f"{split}: documents": len(packed[split].ids), f"{split}: tokens": len(packed[split].tokens)})
    meta = {"form": form, "vocab_size": loaded.vocab_size, "counts": dict(sorted(counts.items())), "bytes": sizes}
    (out / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(meta, indent=2))
    print(f"{time.perf_counter() - started:.0f} s")
    return meta


def evaluation_prompts(files: Sequence[Path], codec: TextCodec) -> Packed:
    """The articles of dev and test files and the project's own examples, without summaries.

    One longer than the context loses its end.
    """
    maker, packed = Maker(codec, "shorten", frozenset()), Packed()
    articles = [(f"{file.name.split('.')[0]}/{row['id']}", row["article"]) for file in files for row in rows_of(file)]
    articles += [(f"{EXAMPLES_SET}/{number}", text) for number, text in enumerate(EXAMPLES)]
    for name, text in articles:
        sentences = maker.beginning(maker.sentences(text), MAX_ARTICLE_TOKENS)
        packed.add(Document(name, segments_of(sentences), ()), codec)
    return packed


def write(path: Path, arrays: dict[str, np.ndarray]) -> int:
    """Write arrays, compressed; returns the file's size in bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=6))
    return path.stat().st_size


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="folder of NAME-K.jsonl.xz files with id, title, text")
    parser.add_argument("--pairs", type=Path, help="folder of train_*, dev_*, test_* files (id, article, summary)")
    parser.add_argument("--tokenizer", required=True, help="tokenizer folder or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for the packed files")
    parser.add_argument("--form", choices=FORMS, default="shorten")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    try:
        run(args.text, args.pairs, args.tokenizer, args.out, args.form, args.workers)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
