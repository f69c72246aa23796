"""Rules kept by the drafting kernel: the same limits behind every query as the host's rules say."""

import random

import pytest
import torch

from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.summarize.rules import RuleTables
from tests.support.drafts_on_cpu import Rows
from tests.support.drafts_on_gpu import GpuRows
from tests.support.kernel_on_cpu import COMPILER
from tests.support.ruled_rounds import ruled_rows, run_ruled_rounds
from tests.support.slow import examples

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++ to compile the kernels for the CPU")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


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
