"""Other anchors: examples cut, spelled and placed anew say the same, and trackers follow them."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Finished, Token
from selfspan_core.models.model import SpanModel
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.paths import BASE
from selfspan_core.spans.render import Example, render
from selfspan_core.spans.tracker import MAX_READS, Phase
from selfspan_core.tasks.registry import get_task
from tests.support.asking import asked
from tests.support.engine_tools import tiny_hf
from tests.support.slow import examples
from tests.support.span_examples import MARKERS, worked_example
from training.anchors.decode import decode
from training.anchors.pieces import PIECES, TooManyReads, cut_anew, example_of
from training.anchors.spelling import DIGITS, FIRST_WORDS, ONE_ID, Ambiguous, Spelling, spell_out
from training.anchors.variants import USUAL, VARIANTS, Laid, laid_out
from training.data.summary_source import Layout, Summary


@pytest.fixture(scope="module")
def tokenizer():
    return SpanTokenizer.load(BASE)


def summary(seed):
    """An article of random sentences, and steps that copy what they read."""
    rng = random.Random(seed)
    segments = [[rng.randrange(300, 8000) for _ in range(rng.randint(4, 40))] for _ in range(rng.randint(3, 14))]
    places = rng.sample(range(len(segments)), 2)
    return Summary(segments, [((place,), segments[place]) for place in places])


def worked(task, seed, tokenizer):
    """An example with its steps as usual, and the same without."""
    if task == "arithmetic":
        problem = get_task(task).generator.problem(random.Random(seed), 2 + seed % 9, held_out=True)
        render_ = get_task(task).render
        return render_(problem, tokenizer, True, 7, with_steps=True), render_(problem, tokenizer, True, 7)
    layout, of_article = Layout(tokenizer, True), SummaryArrays(summary(seed))
    return layout.render(of_article.whole, 7), layout.render(of_article.prompt, 7, length="short")


class SummaryArrays:
    """The same as packed data has it."""

    def __init__(self, plain):
        segments = [np.asarray(ids, np.uint16) for ids in plain.segments]
        steps = [(reads, np.asarray(ids, np.uint16)) for reads, ids in plain.steps]
        self.whole, self.prompt = Summary(segments, steps), Summary(segments, [])


@given(st.integers(0, 10**6), st.booleans())
def test_what_was_rendered_is_read_back(seed, has_loose_text):
    """Would catch a piece that is lost, or that takes its neighbour's tokens."""
    example = worked_example(seed, loose_text=has_loose_text)
    rendered = render(example, MARKERS)
    assert render(example_of(rendered, MARKERS), MARKERS) == rendered


@settings(max_examples=examples(60, 400), deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(PIECES), st.integers(0, 23))
def test_pieces_hold_the_same_text_and_all_that_a_step_reads(seed, pieces, offset):
    """Would catch words that are lost or said twice, and a step that may no longer see what it is made of."""
    example = worked_example(seed, num_steps=3)
    try:
        cut = cut_anew(example, pieces, MARKERS, offset, random.Random(seed))
    except TooManyReads:
        return
    text = [token for part in example.parts for token in part.ids]
    assert [token for part in cut.parts for token in part.ids] == text
    assert [(step.work, step.result) for step in cut.steps] == [(step.work, step.result) for step in example.steps]
    named = [part.name for part in cut.parts if part.name is not None] + [step.name for step in cut.steps]
    assert named == [MARKERS.name(offset, number) for number in range(len(named))]
    before, now = readable(example), readable(cut)
    for old, new in zip(example.steps, cut.steps, strict=True):
        assert len(new.reads) <= MAX_READS
        assert {place for read in old.reads for place in before[read]} <= {p for r in new.reads for p in now[r]}


def readable(example):
    """Name -> places of the prompt's text, or the step, that it stands for."""
    places, at = {}, 0
    for part in example.parts:
        if part.name is not None:
            places[part.name] = set(range(at, at + len(part.ids)))
        at += len(part.ids)
    return places | {step.name: {("step", number)} for number, step in enumerate(example.steps)}


CASES = [(task, variant) for task, variants in VARIANTS.items() for variant in variants]


@pytest.mark.parametrize(("task", "variant"), CASES, ids=lambda one: getattr(one, "name", one))
def test_trackers_say_what_training_showed(tokenizer, task, variant):
    """Would catch an adapter that is asked under another mask than it learned: positions of spelled names above all."""
    num_seen = 0
    for seed in range(12):
        whole, prompt = worked(task, seed, tokenizer)
        try:
            laid = laid_out(whole, variant, tokenizer, random.Random(seed))
        except (TooManyReads, Ambiguous):
            continue
        num_seen += 1
        asked_for = laid_out(prompt, variant, tokenizer, random.Random(seed))
        rendered, start = laid.rendered, laid.rendered.prompt.num_tokens
        assert asked_for.rendered.ids == rendered.ids[:start]
        tracker, visible = asked_for.tracker(tokenizer), rendered.visibility
        for position, token in enumerate(rendered.ids[start:-1], start):
            state = tracker.push(token)
            assert (state.position, state.visible) == (position, visible[position])
        assert tracker.num_malformed == 0
        assert tracker.ids == laid.inner.ids[laid.inner.prompt.num_tokens : -1]
        assert tracker.num_steps == len(example_of(laid.inner, tokenizer.markers).steps)
        assert sum(rendered.loss_mask[:start]) == 0 and all(rendered.loss_mask[start:])
    assert num_seen >= 6


def test_usual_anchors_are_the_protocols(tokenizer):
    """Would catch a variant that is compared with something that nobody uses."""
    whole, _ = worked("arithmetic", 3, tokenizer)
    assert render(example_of(whole, tokenizer.markers), tokenizer.markers) == whole
    again = laid_out(whole, USUAL, tokenizer, random.Random(1))
    renamed = {a: b for a, b in zip(whole.ids, again.rendered.ids, strict=True) if a != b}
    assert set(renamed) <= set(tokenizer.markers.anchors) and again.rendered == again.inner


def test_names_behind_stand_at_the_end_of_their_segments(tokenizer):
    """Would catch a name that slips into the next segment."""
    (behind,) = (one for one in VARIANTS["arithmetic"] if one.is_behind)
    laid = laid_out(worked("arithmetic", 5, tokenizer)[1], behind, tokenizer, random.Random(1))
    for name, (_, end) in laid.rendered.prompt.segments.items():
        assert laid.rendered.ids[end - 1] == name


def spelled(kind, example):
    rendered = render(example, MARKERS)
    return rendered, Spelling.of(kind, rendered, MARKERS, range(40, 50))


def test_segments_that_begin_alike_are_named_by_the_first():
    """Would catch a name that reads another segment in training than in an answer."""
    example = worked_example(1, num_segments=2, num_steps=1, loose_text=False)
    alike = tuple(type(part)((40, 41, 42, part.ids[0]), part.name) for part in example.parts)
    first, second = (part.name for part in alike)
    for read in (first, second):
        step = type(example.steps[0])((read,), MARKERS.anchors[5], (), (50,))
        rendered, spelling = spelled(FIRST_WORDS, type(example)(example.scaffold, alike, (step,)))
        if read == first:
            assert spell_out(rendered, spelling, MARKERS).rendered.ids.count(40) == 3
        else:
            with pytest.raises(Ambiguous):
                spell_out(rendered, spelling, MARKERS)


@pytest.mark.parametrize("kind", [DIGITS, FIRST_WORDS])
def test_names_that_nobody_has_break_a_step(tokenizer, kind):
    """Would catch a name that is cut off, or names nothing, being taken for another."""
    task = "summarize" if kind == FIRST_WORDS else "arithmetic"
    (variant,) = (one for one in VARIANTS[task] if one.spelling == kind)
    markers = tokenizer.markers
    for half in ([300], [300, 300], [300, 300, 300]):
        prompt = laid_out(worked(task, 4, tokenizer)[1], variant, tokenizer, random.Random(1))
        tracker = prompt.tracker(tokenizer)
        states = [tracker.push(token) for token in (markers.ref, *half, markers.go, 301)]
        assert tracker.num_malformed == 1
        assert states[-1].phase is Phase.BROKEN and states[-1].sees_everything
        tracker.push(markers.end)
        assert tracker.push(markers.eos).phase is Phase.DONE


def test_kinds_that_there_are_not(tokenizer):
    """Would catch a variant that silently is the usual one."""
    example = worked_example(1)
    with pytest.raises(ValueError, match="pieces are"):
        cut_anew(example, "words", MARKERS, 0, random.Random(0))
    with pytest.raises(ValueError, match="spellings are"):
        Spelling.of("letters", render(example, MARKERS), MARKERS, ())
    assert Spelling.of(ONE_ID, render(example, MARKERS), MARKERS, ()).spelled == {}


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_rows_decoded_together_are_each_what_the_engine_writes(attention):
    """Would catch padding that is seen, a mask of another row, and reads that are counted wrongly."""
    model, plain = SpanModel(tiny_hf()), tiny_hf()
    plain.set_attn_implementation("sdpa")
    worked_ = [worked_example(seed, num_segments=2 + seed, num_steps=2) for seed in range(4)]
    prompts = [render(Example(one.scaffold, one.parts), MARKERS) for one in worked_]
    laid = [Laid(one, spell_out(one, Spelling.of(ONE_ID, one, MARKERS, ()), MARKERS)) for one in prompts]
    trackers = [one.tracker(SimpleNamespace(markers=MARKERS)) for one in laid]
    found = decode(plain, [one.rendered.ids for one in laid], trackers, MARKERS.eos, 40, attention == "dense")
    engine = Engine(model, MARKERS)
    for prompt, answer in zip(prompts, found, strict=True):
        events = list(engine.generate(asked(prompt, max_new_tokens=40), attention))
        assert answer.ids == [event.id for event in events if isinstance(event, Token)]
        (end,) = (event for event in events if isinstance(event, Finished))
        assert (answer.attended_tokens, answer.dense_tokens) == (end.attended_tokens, end.dense_tokens)
