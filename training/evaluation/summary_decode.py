"""Decode the summaries of many articles, in every lane and under every set of rules; needs no text and no references.

What it writes (ids, and how much was read) is scored by `evaluation.summary_scores`, on another machine if need be: the
one with the GPU has to have neither the texts nor a sentence splitter.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from selfspan_core.models.model import SpanModel
from selfspan_core.models.places import place_of_base
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.summarize.form import MAX_SUMMARY_TOKENS, Form, Length
from selfspan_core.tasks.summarize.rules import RuleTables, SummaryRules, Words
from training.data.summary_source import Layout, PackedSummaries, Summary
from training.evaluation.batch_decode import decode_greedily
from training.evaluation.lanes import EvaluationLane
from training.summary_data import EVALUATION


@dataclass(frozen=True)
class Setting:
    """How long a summary is to be, and what its decoding is held to.

    Attributes:
        rules: those of `rules`; without them the model writes what it likes.
        copies_only: besides, only words of what is read, in order.
        form: that the prompt asks for; "rewrite" is for adapters that learned both forms.
    """

    name: str
    length: Length
    rules: bool = True
    copies_only: bool = False
    form: Form = "shorten"

    @property
    def words(self) -> Words:
        """What the rules hold bodies to; of a rewritten summary what serving holds it to."""
        return "copied" if self.copies_only else "own" if self.form == "rewrite" else "free"


_KINDS = (("", True, False), (" without rules", False, False), (" copies only", True, True))
SETTINGS = tuple(
    Setting(f"{length}{suffix}", length, rules, copies_only)
    for length in ("short", "medium")
    for suffix, rules, copies_only in _KINDS
)
REWRITTEN_SETTINGS = tuple(
    Setting(f"{length} rewritten{suffix}", length, rules, form="rewrite")
    for length in ("short", "medium")
    for suffix, rules, copies_only in _KINDS
    if not copies_only
)
SETTING_OF = {setting.name: setting for setting in (*SETTINGS, *REWRITTEN_SETTINGS)}


def articles_of(packed: PackedSummaries, sets: Sequence[str]) -> dict[str, Summary]:
    """Articles of some sets by their id (`SET/ID`)."""
    return {
        name: Summary(packed.segments(number), [])
        for number, name in enumerate(packed.ids)
        if name.partition("/")[0] in sets
    }


def decode_lane(
    model: SpanModel,
    tokenizer: SpanTokenizer,
    lane: EvaluationLane,
    setting: Setting,
    articles: dict[str, Summary],
    batch: int,
) -> dict[str, dict]:
    """What one lane writes of each article: `ids`, `attended` and `dense` tokens."""
    layout, tables = Layout(tokenizer, lane.annotated, setting.form), RuleTables(tokenizer)
    # Of like length together: less padding.
    names = sorted(articles, key=lambda name: sum(map(len, articles[name].segments)))
    found = {}
    for first in range(0, len(names), batch):
        chosen = names[first : first + batch]
        prompts = [layout.render(articles[name], length=setting.length) for name in chosen]
        rules = None
        if setting.rules:
            rules = [
                SummaryRules(
                    tables,
                    prompt.ids,
                    prompt.prompt,
                    setting.length,
                    lane.annotated,
                    setting.words,
                    [ids.tolist() for ids in articles[name].segments],
                )
                for name, prompt in zip(chosen, prompts, strict=True)
            ]
        rows = decode_greedily(
            model, tokenizer.markers, prompts, lane.sparse, lane.annotated, MAX_SUMMARY_TOKENS, rules
        )
        for name, row in zip(chosen, rows, strict=True):
            found[name] = {"ids": row.ids, "attended": row.attended_tokens, "dense": row.dense_tokens}
    return found


@dataclass(frozen=True)
class Material:
    """What is decoded, and how it is run.

    Attributes:
        base: the base model, as `place_of_base` takes it. adapters: folder that holds the lanes' adapters.
        data: folder of the packed articles. sets: names of those that are decoded.
        device, dtype: where and in which number format the models run.
        batch: articles at once.
    """

    base: str
    adapters: str
    data: str
    sets: Sequence[str]
    device: str
    dtype: str
    batch: int


def decode_all(
    material: Material, lanes: Sequence[EvaluationLane], settings: Sequence[Setting]
) -> dict[str, dict[str, dict]]:
    """Every lane under every setting: lane -> setting -> article -> what was written.

    Raises:
        OSError, ValueError: a model or the packed articles are missing.
    """
    tokenizer = SpanTokenizer.load(place_of_base(material.base))
    articles = articles_of(PackedSummaries(material.data, tokenizer, EVALUATION), material.sets)
    if not articles:
        raise ValueError(f"{material.data} holds no articles of {', '.join(material.sets)}")
    outputs: dict[str, dict[str, dict]] = {}
    for lane in lanes:
        folder, dtype = Path(material.adapters) / lane.adapter, getattr(torch, material.dtype)
        model = SpanModel.load(material.base, folder, material.device, dtype, tokenizer)
        for setting in settings:
            started = time.perf_counter()
            outputs.setdefault(lane.name, {})[setting.name] = decode_lane(
                model, tokenizer, lane, setting, articles, material.batch
            )
            print(f"{lane.name}, {setting.name}: {time.perf_counter() - started:.0f} s", flush=True)
    return outputs
