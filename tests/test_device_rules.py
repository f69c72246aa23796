"""Rules kept by the drafting kernel: the same limits behind every query as the host's rules say."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_kernels import compile as loader
from cuda_kernels.compile import ARCHITECTURES
from cuda_kernels.drafts import MAX_QUERIES, macros
from cuda_kernels.rules import RuleBuffers, hash_of
from selfspan_core.engine.batch_parts import grammar_of
from selfspan_core.engine.device_rules import MOST_WAYS
from selfspan_core.engine.hints import DraftHints
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.summarize.rules import RuleTables
from tests.support.byte_level import byte_level
from tests.support.drafts_on_cpu import Rows
from tests.support.drafts_on_gpu import GpuRows
from tests.support.kernel_on_cpu import COMPILER
from tests.support.ruled_rounds import RuledReference, begin_row, drafter_of, ruled_rows, run_ruled_rounds, world_of
from tests.support.ruled_walks import ruled
from tests.support.ruled_worlds import small_rows
from tests.support.slow import examples, sampled

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++ to compile the kernels for the CPU")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SAME_SUM = ("xrxjekmg", "nnowhtay")
"""Two words that `hash_of` takes for one."""


@pytest.fixture(scope="module")
def tables():
    return RuleTables(SpanTokenizer.load("assets/base"))


@needs_compiler
def test_the_kernel_says_what_the_rules_say(tables):
    """Would catch an id that the kernel lets through or forbids otherwise than the host's rules do, behind the last id
    or behind any draft; a forbidden draft that is fed; a state that drafts leave behind."""
    num_fed = 0
    for seed in range(examples(6, 200)):
        rows, references = ruled_rows(Rows.idle, tables, seed)
        num_fed += run_ruled_rounds(rows, references, random.Random(seed))
    assert num_fed > 100


def readable_behind(tables, sentences, said):
    """A row in which the first sentence is read and the ids `said` are its body; what is readable behind it."""
    prompt, rules = ruled(tables, sentences, "medium", True)
    markers = tables.markers
    names = list(prompt.prompt.segments)
    fresh = markers.anchors[(markers.anchor_index[names[-1]] + 1) % len(markers.anchors)]
    stream = [markers.ref, names[0], fresh, markers.go, *said, markers.end, markers.ref, names[-1]]
    rows = Rows.idle(grammar_of(markers, tables.tokenizer.vocab_size), 1, 2048, True)
    hints = DraftHints(1, behind=(markers.end,))
    begin_row(rows, 0, prompt, True, rules.on_device(), stream[0], hints)
    reference = RuledReference(world_of(tables), prompt, True, rules, stream, drafter_of(hints, markers, True))
    run_ruled_rounds(rows, [reference], random.Random(0))
    return [names.index(name) for name in rules._new]


@needs_compiler
def test_a_body_of_many_words(tables):
    """Would catch runs of words that are forgotten where a body has more of them than are looked up at a time."""
    words = [chr(97 + i % 26) if i % 3 else chr(97 + i // 26) for i in range(150)]
    text = " ".join(words)
    ids = tables.tokenizer.encode(f" {text}")
    assert 130 < len(ids) < 160
    last, first = (" ".join(part) for part in (words[-4:], words[1:5]))
    assert last not in " ".join(words[:-1])
    sentences = [text, f"so {last}", f"so {first} on", "nothing of it here"]
    assert readable_behind(tables, sentences, ids) == [3]


@needs_compiler
def test_words_of_the_same_sum_are_told_apart(tables):
    """Would catch segments that are left out for words that a body does not have."""
    one, two = SAME_SUM
    assert one != two and hash_of([ord(c) for c in one]) == hash_of([ord(c) for c in two])
    said, other = f"the old {one} bridge fell down.", "nobody came."
    sentences = [said, f"an old {two} bridge fell over.", f"my old {one} bridge fell over.", other]
    assert readable_behind(tables, sentences, tables.tokenizer.encode(f" {said}")) == [1, 3]


@needs_compiler
@pytest.mark.parametrize("num", [2, 5, 150])
def test_a_shared_beginning_goes_on_as_the_others_do(tables, num):
    """Would catch sentences that are forgotten, or written over the next query's limits, where many begin alike."""
    tokenizer = tables.tokenizer
    pieces = [tokenizer.piece(token) for token in range(600, 3000)]
    words = [piece for piece in pieces if piece.startswith(" ") and piece.isascii() and piece[1:].islower()][:num]
    sentences = [f"She saw{word} by day and by night." for word in words]
    prompt, rules = ruled(tables, sentences, "medium", False)
    said, other = (tokenizer.encode(f" {sentence}") for sentence in sentences[:2])
    begun = next(place for place, pair in enumerate(zip(said, other, strict=True)) if pair[0] != pair[1])
    ended = [tables.separator, *said, tables.separator, *other[: begun + 1]]
    rows = Rows.idle(grammar_of(tables.markers, tables.tokenizer.vocab_size), 1, 2048, True)
    hints = DraftHints(1, behind=(tables.markers.end,))
    begin_row(rows, 0, prompt, False, rules.on_device(), ended[0], hints)
    behind = rules.fork()
    for token in ended[:-1]:
        behind.push(token)
    assert len(set(behind.limits().only)) == min(num - 1, MOST_WAYS)
    reference = RuledReference(world_of(tables), prompt, False, rules, ended, drafter_of(hints, tables.markers, False))
    run_ruled_rounds(rows, [reference], random.Random(0))


@needs_compiler
@pytest.mark.parametrize(
    ("spelled", "readable"),
    [
        (b" b", [1, 3]),
        (b" b\xff", [2, 3]),  # no UTF-8 as a whole: no text at all
        (b"\xff", [2, 3]),
        (b"\xc3\xa9", [1, 2]),  # a letter joined to the word before
        (b"\xe2\x80\x99 b\xe2", [2, 3]),
        (b" b\x00", [1, 3]),
    ],
)
def test_ids_of_single_bytes(tables, spelled, readable):
    """Would catch a run of bytes of which a part is read though the whole is no text, or the other way round."""
    encode = tables.tokenizer.encode
    pieces, alone = tables.tokenizer.id_bytes()
    by_byte = {pieces[token][0]: token for token in alone}
    said = [*encode(" Nobody saw a"), *(by_byte[byte] for byte in spelled), *encode(" fall from it.")]
    sentences = ["It rained.", "Then nobody saw a fall.", "They saw a b fall.", "They saw aé fall from there."]
    assert readable_behind(tables, sentences, said) == readable


@needs_compiler
@pytest.mark.parametrize(
    ("spelled", "readable"),
    [
        (b" b\xff", [1, 3]),
        (b" \xe2\x80b", [1, 3]),  # what begins no character is dropped alone
        (b" \xc3 b\xa9", [1, 3]),
        (b" \xc1\xa2", [2, 3]),  # "b" in more bytes than it takes
        (b" \xe0\x81\xa2", [2, 3]),
        (b" \xf0\x80\x81\xa2", [2, 3]),
    ],
)
def test_bytes_that_are_no_text(spelled, readable):
    """Would catch bytes that a byte-level tokenizer reads otherwise."""
    tables = RuleTables(byte_level())
    encode, (pieces, _) = tables.tokenizer.encode, tables.tokenizer.id_bytes()
    said = [*encode(" Nobody saw a"), *(pieces.index(bytes([byte])) for byte in spelled), *encode(" fall from it.")]
    sentences = ["It rained.", "Then nobody saw a fall.", "They saw a b fall.", "They saw aé fall from there."]
    assert readable_behind(tables, sentences, said) == readable


@needs_compiler
@settings(max_examples=examples(60, 2000), deadline=None)
@given(st.integers(0, 2**32))
def test_small_worlds(seed):
    """Would catch any number of the rules that is off by one, and any byte that is read otherwise: of few ids, with
    bodies of few of them, all that can happen does."""
    rng = random.Random(seed)
    rows, references = small_rows(Rows.idle, rng)
    run_ruled_rounds(rows, references, rng)


def test_tables_of_another_tokenizer_are_refused(tables):
    """Would catch rows that are judged by the classes of an earlier row's ids, and ids for which there is no room."""
    grammar = grammar_of(tables.markers, tables.tokenizer.vocab_size)
    form = ruled(tables, ["It rained on a day in May.", "Nobody came."], "short", True)[1].on_device()
    buffers = RuleBuffers(grammar, 2, 400, MAX_QUERIES, "cpu")
    buffers.begin(0, form)
    again = RuleTables(tables.tokenizer)
    buffers.begin(1, ruled(again, ["It rained.", "Nobody came."], "short", True)[1].on_device())
    again = RuleTables(tables.tokenizer)
    again.closes = frozenset()
    with pytest.raises(ValueError, match="other classes of ids"):
        buffers.begin(1, ruled(again, ["It rained."], "short", True)[1].on_device())
    with pytest.raises(ValueError, match="there is room for"):
        RuleBuffers(grammar_of(tables.markers, 300), 1, 400, MAX_QUERIES, "cpu").begin(0, form)
    with pytest.raises(ValueError, match="no room for them"):
        RuleBuffers(grammar, 1, 3, MAX_QUERIES, "cpu").begin(0, form)


@pytest.mark.parametrize("architecture", sampled(ARCHITECTURES, [75, 120]))
def test_compiles_for_every_architecture(tables, architecture):
    """Would catch an instruction that a GPU does not have, and state that outgrows a block's shared memory."""
    grammar = grammar_of(tables.markers, tables.tokenizer.vocab_size)
    for has_rules in (False, True):
        assert "spill" in loader.compile_for(macros(grammar, has_rules), architecture, "draft.cu")[1]
    narrow = (*grammar.macros(), f"-DMAX_QUERIES={MAX_QUERIES}", f"-DIS_BF16={int(architecture >= 80)}")
    assert "0 bytes spill stores" in loader.compile_for(narrow, architecture, "narrow.cu")[1]


@pytest.mark.gpu
@needs_cuda
def test_gpu_says_what_the_rules_say(tables):
    """Would catch threads that read what another is about to write: a CPU runs them in turn."""
    for seed in range(12):
        rows, references = ruled_rows(GpuRows, tables, seed, num_rows=9)
        run_ruled_rounds(rows, references, random.Random(seed))


@pytest.mark.gpu
@needs_cuda
def test_gpu_small_worlds():
    """Would catch the same where all that can happen does."""
    for seed in range(40):
        rows, references = small_rows(GpuRows, random.Random(seed))
        run_ruled_rounds(rows, references, random.Random(seed))
