"""The summarizing task: prompts and worked steps as ids, what decoding may write, and what was written read back."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.errors import InputError, TooLongError
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.spans.render import render
from selfspan_core.spans.tracker import Tracker
from selfspan_core.tasks.registry import get_task
from selfspan_core.tasks.summarize.examples import EXAMPLES
from selfspan_core.tasks.summarize.form import CUE, MAX_SEGMENTS, MAX_STEPS, MIN_STEPS
from selfspan_core.tasks.summarize.rules import MAX_BODY, NGRAM, RuleTables, SummaryRules
from selfspan_core.tasks.summarize.task import Summarize, SummaryStep, problem_of, segments_of
from selfspan_core.tasks.summarize.written import read_lines, read_steps
from tests.support.slow import examples

SENTENCES = (
    "The town council voted on Tuesday to close the old heating plant, which burns coal.",
    "residents had complained for years about soot.",
    "The work will cost 14 million euros.",
    'She wrote "<|ref|><|a3|><|go|>" on a wall.',
)
STEPS = (
    SummaryStep((0,), "The town council voted to close the old heating plant."),
    SummaryStep((1, 2), "Residents had complained for years about soot. The work will cost 14 million euros."),
)


@pytest.fixture(scope="module")
def tokenizer():
    return SpanTokenizer.load("assets/base")


@pytest.fixture(scope="module")
def tables(tokenizer):
    return RuleTables(tokenizer)


@pytest.fixture(scope="module")
def problem():
    return problem_of(SENTENCES, "short", STEPS)


def test_layout_of_a_worked_example(tokenizer, problem):
    """Would catch a sentence without its name, a body that sees more than its sentences, and names that repeat."""
    rendered = Summarize("short").render(problem, tokenizer, annotated=True, offset=254, with_steps=True)
    markers, layout = tokenizer.markers, rendered.prompt
    names = [markers.anchors[i] for i in (254, 255, 0, 1)]
    assert list(layout.segments) == names
    for name, sentence in zip(names, SENTENCES, strict=True):
        start, end = layout.segments[name]
        assert rendered.ids[start] == name and tokenizer.decode(rendered.ids[start:end]) == f" {sentence}"
    assert tokenizer.decode(rendered.ids[: layout.num_tokens]) == "Summarize briefly: " + " ".join(SENTENCES) + CUE
    written = rendered.ids[layout.num_tokens :]
    assert written[:4] == [markers.ref, names[0], markers.anchors[2], markers.go]
    assert markers.res not in written and written[-1] == markers.eos
    steps = read_steps(written, layout, tokenizer)
    assert [(step.reads, step.text) for step in steps] == [(step.reads, step.text) for step in STEPS]
    assert not any(step.malformed or step.is_cut for step in steps)
    assert rendered.loss_mask == [0] * layout.num_tokens + [1] * len(written)
    # The last token of the second body: instruction, two neighbouring sentences as one interval, its own step.
    last = len(rendered.ids) - 3
    scaffold, read, own = rendered.visibility[last]
    assert scaffold == (0, layout.scaffold_end)
    assert read == (layout.segments[names[1]][0], layout.segments[names[2]][1])
    assert own[0] == layout.num_tokens + written.index(markers.end) + 1 and own[1] == last + 1


def test_plain_layout_is_the_same_text(tokenizer, problem):
    """Would catch a plain lane that is given another task than the span lane."""
    task = Summarize("short")
    plain = task.render(problem, tokenizer, annotated=False, with_steps=True)
    assert not set(plain.ids) & set(tokenizer.markers.ids)
    span = task.render(problem, tokenizer, annotated=True, with_steps=True)
    assert tokenizer.decode(plain.ids).replace("\n ", " ") == tokenizer.decode(span.ids)
    written = plain.ids[plain.prompt.num_tokens :]
    assert [step.text for step in read_lines(written, tokenizer)] == [step.text for step in STEPS]
    assert task.answer(tokenizer.decode(written)) == " ".join(step.text for step in STEPS)


def test_markers_in_an_article_are_text(tokenizer, problem):
    """Would catch an article that writes its own steps."""
    rendered = Summarize().render(problem, tokenizer, annotated=True)
    ids = [token for token in rendered.ids if token in tokenizer.markers.ids]
    assert ids == list(tokenizer.markers.anchors[: len(SENTENCES)])


def test_more_sentences_than_names_share_them():
    """Would catch sentences cut silently, and names that run out or collide with the steps'."""
    for number in (1, 3, MAX_SEGMENTS, MAX_SEGMENTS + 1, 1000):
        sentences = [f"This is sentence {i}." for i in range(number)]
        segments = segments_of(sentences)
        assert " ".join(segments) == " ".join(sentences)
        assert len(segments) == min(number, MAX_SEGMENTS)
        sizes = {segment.count("This") for segment in segments}
        assert max(sizes) - min(sizes) <= 1
    assert MAX_SEGMENTS + max(MAX_STEPS.values()) <= 256


def test_what_the_context_cannot_hold_is_offered_shorter(tokenizer):
    """Would catch an article cut silently, and an offer that does not fit either."""
    task = get_task("summarize")
    text = " ".join([EXAMPLES[0].replace("\n", " ")] * 30)
    with pytest.raises(
        TooLongError, match=r"has \d,\d\d\d words .* holds 3,584 tokens .* first \d,\d\d\d words"
    ) as caught:
        task.render(task.parse(text), tokenizer, annotated=True)
    beginning = task.parse(caught.value.beginning)
    assert len(task.render(beginning, tokenizer, annotated=True).ids) > 3400
    assert text.startswith(caught.value.beginning)
    with pytest.raises(TooLongError, match=r"the limit is 60,000 .* the first [\d,]+ words, for example") as caught:
        task.parse(f"{text} " * 10)
    beginning = task.parse(caught.value.beginning)
    assert 1000 < len(task.render(beginning, tokenizer, annotated=True).ids) < 1800
    with pytest.raises(TooLongError, match=r"summarize its beginning\.") as caught:
        task.parse("word " * 20_000)
    assert caught.value.beginning == ""
    assert len(Summarize(max_context=8192).render(task.parse(text), tokenizer, annotated=True).ids) > 3584


def test_task_as_the_app_uses_it(tokenizer):
    """Would catch a task that does not keep to the interface."""
    task = get_task("summarize")
    problem = task.parse(EXAMPLES[0])
    assert "".join(text for text, _ in problem.display).startswith(" The town of Ellmoor will close")
    assert [name for _, name in problem.display] == [*range(9), None]
    assert task.surprise(3) in EXAMPLES
    similar = next(task.similar(problem, 0))
    assert sorted(similar.sentences) == sorted(problem.sentences) and similar != problem
    assert task.answer(" \n ") is None and not task.check(problem, None)
    with pytest.raises(InputError, match="short, medium"):
        Summarize("long")


def test_examples_can_be_summarized(tokenizer):
    """Would catch an example that the app offers and refuses, and sentences that are split wrongly."""
    task = get_task("summarize")
    assert task.examples is EXAMPLES and set(task.page.stories.values()) <= set(EXAMPLES)
    for text in EXAMPLES:
        problem = task.parse(text)
        assert 130 <= len(problem.text.split()) <= 900
        assert all(segment[0].isupper() or segment[0] in '"2' for segment in problem.segments)
        assert all(segment.endswith((".", '."')) for segment in problem.segments)
        task.render(problem, tokenizer, annotated=True)


# ---------------------------------------------------------------------------------------------------------------- rules


def rules_of(tables, problem, length, annotated, copies_only=False):
    rendered = Summarize(length).render(problem, tables.tokenizer, annotated, offset=250)
    segments = [tables.tokenizer.encode(f" {sentence}") for sentence in problem.segments]
    words = "copied" if copies_only else "free"
    return rendered, SummaryRules(tables, rendered.ids, rendered.prompt, length, annotated, words, segments)


@pytest.mark.parametrize("copies_only", [False, True])
@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("length", ["short", "medium"])
def test_whatever_a_model_wants_its_summary_is_well_formed(tables, length, annotated, copies_only):
    """Would catch rules that leave nothing to choose, or a way to write what they forbid."""
    tokenizer, markers = tables.tokenizer, tables.markers
    problem = problem_of(SENTENCES * 2)
    for seed in range(examples(4, 12)):
        rng = random.Random(seed)
        rendered, rules = rules_of(tables, problem, length, annotated, copies_only)
        written = []
        # What a confused model likes: a few ids again and again, markers, and now and then anything.
        liked = [*rng.sample(range(tokenizer.vocab_size), 6), *markers.ids[:6], markers.eos, tables.separator]
        liked += rng.sample(sorted(tables.ends), 2)
        while not written or written[-1] != markers.eos:
            only, banned = rules.limits()
            pool = liked if rng.random() < 0.9 else range(tokenizer.vocab_size)
            chosen = [i for i in pool if (only is None or i in only) and i not in banned]
            chosen = chosen or [i for i in (only or range(tokenizer.vocab_size)) if i not in banned]
            written.append(rng.choice(chosen))
            rules.push(written[-1])
            assert len(written) < 2000
        steps = read_steps(written, rendered.prompt, tokenizer) if annotated else read_lines(written, tokenizer)
        assert MIN_STEPS[length] <= len(steps) <= MAX_STEPS[length]
        assert not any(step.malformed for step in steps) or not annotated
        assert all(step.text or not annotated for step in steps)
        reads = [read for step in steps for read in step.reads]
        assert len(set(reads)) == len(reads)
        if annotated:
            tracker = Tracker(markers, rendered.prompt)
            for token in written:
                tracker.push(token)
            assert tracker.num_malformed == 0


@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("copies_only", [False, True])
def test_a_worked_summary_is_allowed(tables, problem, annotated, copies_only):
    """Would catch rules that forbid what is taught: large first letters, two sentences in a step, quotation marks."""
    task, steps = Summarize("short"), problem.steps
    if not annotated:  # a plain lane's line comes from one sentence
        steps = (
            steps[0],
            SummaryStep((1,), "Residents had complained for years."),
        )
    example = problem_of(problem.segments, "short", steps)
    _, rules = rules_of(tables, example, "short", annotated, copies_only)
    worked = task.render(example, tables.tokenizer, annotated, offset=250, with_steps=True)
    for place, token in enumerate(worked.ids[worked.prompt.num_tokens :]):
        only, banned = rules.limits()
        assert (only is None or token in only) and token not in banned, (place, tables.tokenizer.piece(token))
        rules.push(token)


def test_what_is_said_is_not_named_again(tables):
    """Would catch a summary that says four words twice because two sentences of the article do."""
    sentences = ["The mayor of Ellmoor said no.", "In May the mayor of Ellmoor left.", "It rained.", "Nobody came."]
    rendered, rules = rules_of(tables, problem_of(sentences), "medium", True)
    first, second, third, fourth = rendered.prompt.segments
    markers, encode = tables.markers, tables.tokenizer.encode

    def write(name, text):
        rules.push(markers.ref)
        allowed = rules.limits().only
        for token in (name, rules._fresh[len(rules._bodies)], markers.go, *encode(f" {text}"), markers.end):
            rules.push(token)
        return set(allowed)

    assert write(first, sentences[0]) == {first, second, third, fourth}
    assert write(third, sentences[2]) == {third, fourth}
    # Nothing new is left: three would be asked for if there were.
    write(fourth, sentences[3])
    assert set(rules.limits().only) == {markers.eos}


def test_what_has_no_full_stop_is_not_named_and_may_end(tables):
    """Would catch a heading that goes on and on since no full stop comes; headings named while there are sentences."""
    markers, encode = tables.markers, tables.tokenizer.encode
    rendered, rules = rules_of(tables, problem_of(["A heading", "It rained.", "Nobody came.", "More"]), "short", True)
    rules.push(markers.ref)
    assert set(rules.limits().only) == set(list(rendered.prompt.segments)[1:3])
    headings = [f"{word} plans for the harbour, what now" for word in ("New", "Old", "More")]
    rendered, rules = rules_of(tables, problem_of(headings), "short", True)
    name = next(iter(rendered.prompt.segments))
    for token in (markers.ref, name, rules._fresh[0], markers.go, *encode(f" {headings[0]}")):
        only, banned = rules.limits()
        assert markers.end in banned if only is None else markers.end not in only
        rules.push(token)
    assert markers.end not in rules.limits().banned
    rules.push(markers.end)
    # The others say four words of it again.
    assert set(rules.limits().only) == {markers.eos}


def test_no_sentence_begins_twice_and_no_loop(tables, problem):
    """Would catch a summary that says the same again, or never ends."""

    def may_come(token):
        only, banned = rules.limits()
        return token not in banned and (not only or token in only)

    _, rules = rules_of(tables, problem, "medium", annotated=False)
    body = tables.tokenizer.encode(" The town council voted on Tuesday to go.")
    for token in [tables.separator, *body, tables.separator, *body[:7]]:
        rules.push(token)
    assert not may_come(body[7]) and may_come(tables.tokenizer.encode(" The town council voted on Tuesday to close")[7])
    _, rules = rules_of(tables, problem, "medium", annotated=False)
    loop = body[: NGRAM - 1]
    for token in [tables.separator, *loop, body[7], *loop]:
        rules.push(token)
    assert not may_come(body[7])
    for token in itertools.islice(itertools.cycle([900, 901, 902, 903, 904, 905, 906, 907, 908]), MAX_BODY):
        rules.push(token)
    assert set(rules.limits().only) <= {tables.separator, tables.markers.eos}


def test_ids_count_whether_or_not_limits_were_asked_for(tables, problem):
    """Would catch ids accepted several at a time that are taken in by the limits of the first: a body that left out
    words up to its full stop could not go on with the next sentence."""
    encode, markers = tables.tokenizer.encode, tables.markers
    asked, told = (rules_of(tables, problem, "short", annotated=True, copies_only=True)[1] for _ in range(2))
    stop = encode(f" {SENTENCES[0]}")[-1]
    header = [markers.ref, *(markers.anchors[i] for i in (250, 251, 254)), markers.go]
    for token in (*header, *encode(" The town council voted on Tuesday"), stop):
        assert token in asked.limits().only
        asked.push(token)
        told.push(token)
    assert {markers.end, encode(" residents")[0]} <= set(told.limits().only)
    assert asked.limits() == told.limits()


def continued(rng, rules, tables, num, told):
    """So many random ids that rules allow, or up to the end; `told` are the rules that they are pushed on."""
    ids = []
    while len(ids) < num and tables.markers.eos not in ids:
        only, banned = rules.limits()
        allowed = set(only or range(tables.tokenizer.vocab_size)) - set(banned)
        # What ends a sentence or a step comes often, so that there are steps.
        ends = allowed & {tables.markers.end, tables.separator, *rng.sample(sorted(tables.ends), 9)}
        ids.append(rng.choice(sorted(ends if ends and rng.random() < 0.4 else allowed)))
        for one in told:
            one.push(ids[-1])
    return ids


@settings(max_examples=examples(40, 400), deadline=None)
@given(st.booleans(), st.booleans(), st.integers(0, 80), st.integers(1, 60), st.integers(0, 2**32))
def test_a_fork_of_the_rules_is_another_one(tables, annotated, copies_only, num_before, num_ahead, seed):
    """Would catch a fork that shares a list with its original, or lacks some of its state, and ids that are taken in
    otherwise when nobody asked for the limits before.

    The twin is told the same ids as the original, and is never forked or asked in between.
    """
    rng, problem = random.Random(seed), problem_of(SENTENCES * 2)
    original, twin = (rules_of(tables, problem, "medium", annotated, copies_only)[1] for _ in range(2))
    written = continued(rng, original, tables, num_before, [original, twin])
    before, fork = original.limits(), original.fork()
    assert fork.limits() == before == twin.limits()
    if tables.markers.eos in written:
        return
    other = continued(rng, fork, tables, num_ahead, [fork])
    assert original.limits() == before
    again = original.fork()
    for token in other:
        again.push(token)
    assert again.limits() == fork.limits() and again.num_steps == fork.num_steps
    # The original goes on as if nothing had been.
    second = original.fork()
    for token in continued(rng, original, tables, 60, [original]):
        assert second.limits() == twin.limits()
        twin.push(token)
        second.push(token)
    assert original.limits() == twin.limits() == second.limits() and original.num_steps == twin.num_steps
    assert again.limits() == fork.limits()


def test_bodies_of_copies_are_words_in_order(tables, problem):
    """Would catch half words, words out of order, and words of a sentence that is not read."""
    _, rules = rules_of(tables, problem, "short", annotated=True, copies_only=True)
    encode, markers = tables.tokenizer.encode, tables.markers
    for token in (markers.ref, markers.anchors[250], markers.anchors[254], markers.go):
        rules.push(token)
    allowed = set(rules.limits().only)
    assert {encode(" The")[0], encode(" council")[0], encode(" Council")[0], encode(" Town")[0]} <= allowed
    assert encode(" cost")[0] not in allowed
    for token in encode(" Council"):
        rules.push(token)
    allowed = set(rules.limits().only)
    assert encode(" closed")[0] != encode(" town")[0] and encode(" town")[0] not in allowed
    assert {encode(" voted")[0], encode(" Tuesday")[0]} <= allowed


# ------------------------------------------------------------------------------------------------------ reading it back


@pytest.mark.parametrize(
    ("written", "malformed"),
    [
        (["<|ref|>", "a0", "a9", "<|go|>", " A town.", "<|end|>"], False),
        (["<|ref|>", "a9", "<|go|>", " A town.", "<|end|>"], True),  # reads nothing
        (["<|ref|>", "a0", "a1", "a2", "a9", "<|go|>", " A town.", "<|end|>"], True),  # too much
        (["<|ref|>", "a0", "a9", "<|go|>", "<|end|>"], True),  # says nothing
        (["<|ref|>", "a77", "a9", "<|go|>", " A town.", "<|end|>"], True),  # no such sentence
        ([" A town.", "<|end|>"], True),  # no header
        (["<|ref|>", "a0", "a9", "<|go|>", " A town"], True),  # never ends
    ],
)
def test_malformed_steps_are_flagged(tokenizer, problem, written, malformed):
    """Would catch a broken step counted as a good one, and one that crashes the reader."""
    markers = tokenizer.markers
    known = {"<|ref|>": markers.ref, "<|go|>": markers.go, "<|end|>": markers.end}
    known |= {f"a{i}": anchor for i, anchor in enumerate(markers.anchors)}
    ids = [i for piece in written for i in ([known[piece]] if piece in known else tokenizer.encode(piece))]
    layout = Summarize().render(problem, tokenizer, annotated=True).prompt
    (step,) = read_steps([*ids, markers.eos], layout, tokenizer)
    assert step.malformed == malformed


def test_plain_lines_read_back(tokenizer):
    """Would catch empty lines, markers and cut sentences that go unnoticed."""
    encode, markers = tokenizer.encode, tokenizer.markers
    steps = read_lines([*encode("\n One.\n Two"), markers.eos], tokenizer)
    assert [(step.text, step.malformed, step.is_cut) for step in steps] == [
        ("One.", False, False),
        ("Two", False, True),
    ]
    assert [step.malformed for step in read_lines(encode("\n One.\n\n Two."), tokenizer)] == [False, True, False]
    assert read_lines([markers.ref, *encode("\n One.")], tokenizer)[0].malformed
    assert read_lines([markers.eos], tokenizer) == []


def test_a_step_without_working_has_no_result_marker(tokenizer, problem):
    """Would catch a summary's steps that spend a token on a mark that means nothing."""
    example = Summarize().example(problem, tokenizer, with_steps=True)
    assert tokenizer.markers.res not in render(example, tokenizer.markers).ids
