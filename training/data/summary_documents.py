"""Articles annotated with summaries: a row of text in, a document with its steps out.

Sentences are split, aligned and shortened here. This needs a sentence splitter and a stemmer, which training itself
does not need: only the programs that prepare data import this module.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from selfspan_core.models.tokenizer import TextCodec
from selfspan_core.tasks.summarize.cleaning.pipeline import cleaned
from selfspan_core.tasks.summarize.form import MAX_LEARNED_TOKENS, MAX_SEGMENTS
from selfspan_core.tasks.summarize.text import clean, is_sentence, sentences_of
from training.data.summary_annotation import MIN_COVERAGE, Aligned, Article, annotate, draw_choices
from training.data.summary_files import kind_of, shares_passages
from training.data.summary_format import MAX_LONG_TOKENS, Document, Target
from training.data.summary_ranking import Candidates, Ranker
from training.data.summary_shorten import shorten
from training.data.summary_tokens import is_pronoun_led
from training.data.summary_words import content, is_finite
from training.text_data import HELDOUT_SHARE, share_of, split_of

CHOSEN_FROM = ("highlights", "roundups", "extracts")
NUM_CHOICES = {2: 8, 3: 4}
"""How many choices are drawn, by their number of sentences."""
NUM_OPENINGS = {1: 2, 2: 2}
"""How many openings are drawn, by the number of sentences from the article's beginning beside the chosen one."""
MAX_STEPS = 8
MAX_NEWS_TOKENS = (280, 900)
MAX_LEAD_TOKENS = 700
LEADS_SHARE = 0.4
MIN_SENTENCES = 4
MIN_TITLE_COVERAGE, MIN_LEAD_COVERAGE, MIN_REWRITE_COVERAGE = 0.5, 0.5, 0.65
SECOND_SENTENCE_GAIN = 0.34
NUM_RANKED = (2, 4)
NUM_GAPS = (2, 3, 3, 4)


class DocumentMaker:
    """Turns documents of a folder into annotated ones.

    Args:
        codec: of the tokenizer; its lengths decide where a long article ends.
        form: one of FORMS.
        passages: word runs of the dev and test articles, which no document to train on may share.
        ranker: chooses sentences of articles without a summary; None: there are no `ranked` summaries.
    """

    def __init__(self, codec: TextCodec, form: str, passages: frozenset[int], ranker: Ranker | None = None) -> None:
        self._codec, self._form, self.passages, self._ranker = codec, form, passages, ranker
        self.counts: Counter = Counter()

    def make(self, source: str, row: dict) -> Document | None:
        """A document with its summaries; None if it has no usable summary."""
        kind = kind_of(source)
        if kind == "leads" and share_of(str(row["id"]), "leads") >= LEADS_SHARE:
            return None
        body = str(row.get("article") or row.get("text") or "")
        if shares_passages(body, self.passages):
            self.counts[f"{kind}: shares a passage with dev or test"] += 1
            return None
        if kind == "leads":
            return self._lead(row, body)
        if kind == "titles":
            # Only the beginning is kept, so only that is split.
            return self._news(row, self.sentences(body[: 10 * MAX_NEWS_TOKENS[1]]))
        longest = MAX_LONG_TOKENS if kind == "events" else MAX_LEARNED_TOKENS
        sentences = self.beginning(self.sentences(body), longest)[:MAX_SEGMENTS]
        if len(sentences) < MIN_SENTENCES:
            return None
        references = self.sentences(str(row["summary"]))
        steps = self._steps(kind, sentences, references, 0.0)
        targets = [Target(kind, steps)] if steps else []
        if steps and kind in CHOSEN_FROM and self._form == "shorten":
            targets += self._choices(str(row["id"]), sentences, references)
            targets += self._ranked(str(row["id"]), sentences)
        return self._document(row, sentences, targets)

    def learned(self, row: dict) -> list[str] | None:
        """The sentences of an article with a summary to learn from; None if it is held out or shares a passage."""
        body = str(row["article"])
        if split_of(row, HELDOUT_SHARE) != "train" or shares_passages(body, self.passages):
            return None
        return self.beginning(self.sentences(body), MAX_LEARNED_TOKENS)[:MAX_SEGMENTS]

    def _choices(self, key: str, sentences: Sequence[str], references: Sequence[str]) -> Iterator[Target]:
        """Two or three steps that stand for the whole of a summary, some of them from the article's beginning."""
        article, allowed, wanted = Article(sentences), allowed_places(sentences), " ".join(references)
        shortened: dict[int, str] = {}
        for size, count in NUM_CHOICES.items():
            rng = random.Random(f"{key} {size}")
            for places in draw_choices(article, references, size, count, rng, allowed):
                for place in places:
                    if place not in shortened:
                        shortened[place] = shorten(sentences[place], wanted)
                yield Target("choices", tuple(((place,), shortened[place]) for place in places))
        for num_first, count in NUM_OPENINGS.items():
            rng = random.Random(f"{key} opening {num_first}")
            for (place,) in draw_choices(article, references, 1, count, rng, allowed):
                chosen = ((place,), shorten(sentences[place], wanted))
                yield Target("openings", self._opening(sentences, chosen, num_first, allowed))

    def _opening(self, sentences: Sequence[str], chosen: tuple, num_first: int, allowed: Sequence[bool]) -> tuple:
        """A chosen step and steps of the first so many other sentences, in the article's order."""
        first = [place for place in range(len(sentences)) if allowed[place] and place not in chosen[0]][:num_first]
        others = [((place,), shorten(sentences[place], None)) for place in first]
        return tuple(sorted([chosen, *others]))

    def _document(self, row: dict, sentences: Sequence[str], targets: Sequence[Target]) -> Document | None:
        for target in targets:
            self.counts[f"{target.kind}: summaries"] += 1
            self.counts[f"{target.kind}: steps"] += len(target.steps)
        return Document(str(row["id"]), tuple(sentences), tuple(targets)) if targets else None

    def sentences(self, text: str) -> list[str]:
        """Sentences of a text."""
        return sentences_of(clean(cleaned(text).text))

    def beginning(self, sentences: Sequence[str], max_tokens: int) -> list[str]:
        """As many sentences from the start as fit."""
        kept, room = [], max_tokens
        for sentence, ids in zip(sentences, self._codec.encode_batch(f" {s}" for s in sentences), strict=True):
            room -= len(ids) + 1
            if room < 0:
                break
            kept.append(sentence)
        return kept

    def _steps(self, kind: str, sentences: Sequence[str], references: Sequence[str], min_coverage: float) -> tuple:
        """Steps for the sentences of a summary: a sentence that several draw on is cited once, for all of them."""
        article = Article(sentences)
        rewrite = self._form == "rewrite"
        min_coverage = MIN_REWRITE_COVERAGE if rewrite else max(min_coverage, MIN_COVERAGE)
        found = annotate(article, references, allowed_places(sentences), min_coverage, is_body=rewrite)
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

    def _worthwhile(self, article: Article, step: Aligned) -> tuple[int, ...]:
        """Both sentences of an alignment, if the second is worth the words that it costs; else the better one."""
        if len(step.reads) < 2:
            return step.reads
        wanted = content(step.reference)
        held = [wanted & article.contents[read] for read in step.reads]
        best = max((0, 1), key=lambda place: len(held[place]))
        gain = len(held[1 - best] - held[best])
        is_worth = gain >= SECOND_SENTENCE_GAIN * len(wanted) and abs(step.reads[0] - step.reads[1]) <= 3
        return step.reads if is_worth else (step.reads[best],)

    def _shortened(self, sentences: Sequence[str], reads: Sequence[int], wanted: dict[int, list[str]]) -> str:
        texts = [shorten(sentences[read], " ".join(wanted[read])) for read in reads]
        self.counts["sentences cited"] += len(reads)
        self.counts["of them shortened"] += sum(
            text != sentences[read] for text, read in zip(texts, reads, strict=True)
        )
        return " ".join(texts)

    def _news(self, row: dict, sentences: list[str]) -> Document | None:
        """The sentences that the title draws on, and those with the most content of the others."""
        key = str(row["id"])
        title = clean(str(row.get("title") or "")).replace("\n", " ")
        # Some texts begin with their title, which is no sentence to choose.
        while sentences and content(sentences[0]) <= content(title):
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
            targets.append(Target("openings", self._opening(sentences, first, num_first, allowed_places(sentences))))
        targets += [Target("gaps", gaps)] if gaps else []
        return self._document(row, sentences, [*targets, *self._ranked(key, sentences)])

    def _ranked(self, key: str, sentences: Sequence[str]) -> Iterator[Target]:
        """The sentences that the ranker expects the highest score of, few for a brief summary and some more."""
        candidates, ranker = None, self._ranker
        if ranker is not None:
            candidates = Candidates.of(sentences, allowed_places(sentences), ranker.words, ranker.foretold, key)
        if ranker is None or candidates is None:
            return
        if ranker.foretold is not None:
            self.counts[f"foretold: {'nothing' if np.isnan(candidates.features[:, -1]).all() else 'articles'}"] += 1
        for size in NUM_RANKED:
            chosen = ranker.choose(candidates, size)
            if len(chosen) == size:
                yield Target("ranked", tuple(((candidates.places[at],), candidates.texts[at]) for at in chosen))

    def _gaps(self, sentences: Sequence[str], first: tuple | None, num: int) -> tuple:
        """Sentences whose words the rest of the article uses most, chosen one by one, in the article's order.

        Source: PEGASUS (arXiv 1912.08777), section 3.1, "principal" sentences, chosen sequentially.
        """
        contents = Article(sentences).contents
        allowed = [
            is_allowed and not is_pronoun_led(sentence)
            for is_allowed, sentence in zip(allowed_places(sentences), sentences, strict=True)
        ]
        # Word -> number of the sentences not yet chosen that contain it.
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
            first if first and place == first[0][0] else ((place,), shorten(sentences[place], None))
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


def allowed_places(sentences: Sequence[str]) -> list[bool]:
    """Which sentences a summary may be made of: whole ones, with a verb, of a length that can be read.

    Half of a quotation is none: without its other half it reads as if the article said it.
    """
    return [
        is_sentence(sentence)
        and 4 <= len(words := sentence.split()) <= 70
        and any(is_finite(word.strip("\"“”'‘’.,;:()")) for word in words)
        and sentence.count('"') % 2 == 0
        and sentence.count("“") == sentence.count("”")
        and " MORE " not in sentence
        and "http" not in sentence
        for sentence in sentences
    ]


def overlap_with_rest(summary: set[str], candidate: set[str], rest: Counter) -> float:
    """ROUGE-1 F1 of a summary with what is left of the article once its newest sentence is taken out."""
    num_common = sum(rest[word] > (word in candidate) for word in summary)
    return 2 * num_common / (len(summary) + rest.total() - len(candidate))
