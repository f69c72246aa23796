"""Random summaries that rules allow, and what two sets of rules say of them."""

import random
from collections.abc import Sequence

import numpy as np

from selfspan_core.engine.rules import Limits, Rules
from selfspan_core.spans.render import Rendered
from selfspan_core.tasks.summarize.rules import RuleTables, SummaryRules
from selfspan_core.tasks.summarize.task import Summarize, problem_of
from tests.support.summary_tools import sentence

WORDS = (
    "the mayor of Ellmoor said no more money for old bridges and U.S. state-run don’t can't Zürich İzmir ÉCOLE 1,400"
)
ODD = ("Good.", "He left", '"It rained," she said.', "It rained in Zürich's old town (twice)...", "WHAT?!", "Well…")


def made_article(rng: random.Random, num: int) -> list[str]:
    """Sentences of which some repeat four words of others, end like no sentence, are short or oddly written."""
    found: list[str] = []
    for _ in range(num):
        kind = rng.random()
        if kind < 0.5:
            found.append(sentence(rng))
        elif kind < 0.65:
            found.append(rng.choice(ODD))
        elif kind < 0.8 and found:
            words = rng.choice(found).split()
            start = rng.randrange(max(1, len(words) - 4))
            part = " ".join(words[start : start + rng.choice((3, 4, 6))])
            found.append(f"Then {part.upper() if rng.random() < 0.3 else part.lower()} again.")
        else:
            found.append(" ".join(rng.choices(WORDS.split(), k=rng.randint(1, 12))) + rng.choice((".", "", "!", ".”")))
    return found


def ruled(
    tables: RuleTables, sentences: Sequence[str], length: str, annotated: bool, offset: int = 250, words: str = "free"
) -> tuple[Rendered, SummaryRules]:
    """A prompt and its rules; with names from anchor `offset` on."""
    rendered = Summarize(length).render(problem_of(sentences, length), tables.tokenizer, annotated, offset=offset)
    return rendered, SummaryRules(tables, rendered.ids, rendered.prompt, length, annotated, words)


def allowed(limits: Limits, vocab_size: int) -> np.ndarray:
    """Bool `[vocab_size]`: what may come."""
    only, banned = limits
    table = np.full(vocab_size, only is None)
    if only is not None:
        table[list(only)] = True
    table[list(banned)] = False
    return table


def next_id(rng: random.Random, may_come: np.ndarray, tables: RuleTables, copied: Sequence[int]) -> int:
    """An allowed id: of a sentence that is being copied, of those that end things, or any.

    Args:
        copied: ids to go on with, the likeliest first.
    """
    ends = [tables.markers.end, tables.separator, tables.markers.eos, *rng.sample(sorted(tables.ends), 3)]
    ends += rng.sample(sorted(tables.closes), 2)
    kind = rng.random()
    for pool in (copied, ends) if kind < 0.85 else (ends, copied) if kind < 0.97 else ():
        fit = [token for token in pool if may_come[token]]
        if fit:
            return fit[0] if pool is copied else rng.choice(fit)
    return int(rng.choice(np.flatnonzero(may_come)))


def walk(rng: random.Random, tables: RuleTables, rules: Rules, sentences: Sequence[str], most: int = 400) -> list[int]:
    """Ids up to the end, as `rules` allow them; bodies copy sentences, now and then in other letters."""
    encode, ids = tables.tokenizer.encode, []
    copied: list[int] = []
    for _ in range(most):
        may_come = allowed(rules.limits(), tables.tokenizer.vocab_size)
        if (ids and ids[-1] in (tables.markers.go, tables.separator)) or rng.random() < 0.05:
            text = rng.choice(sentences)
            text = rng.choice((text, text.upper(), text.lower(), text.replace("'", "’"), text.replace(" ", "  ")))
            copied = encode(f" {text}")[rng.choice((0, 0, 0, 1, 3)) :]
        ids.append(next_id(rng, may_come, tables, copied[:1]))
        copied = copied[1:] if copied[:1] == ids[-1:] else copied
        rules.push(ids[-1])
        if ids[-1] == tables.markers.eos:
            return ids
    return ids
