"""Fixtures of tests that ask a server: the shipped tokenizer, a server that writes the right answer, its address."""

import pytest

from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.paths import BASE
from tests.support.fake_vllm import FakeVllm, served
from tests.support.http_tools import TASK, TEXT
from tests.support.scripted import right_output


@pytest.fixture(scope="session")
def tokenizer():
    return SpanTokenizer.load(BASE)


@pytest.fixture
def fake(tokenizer):
    return FakeVllm(tokenizer, lambda body: right_output(tokenizer, TASK.parse(TEXT)))


@pytest.fixture
def address(fake):
    with served(fake) as where:
        yield where
