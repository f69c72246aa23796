"""The tokenizer in versions of vLLM that count one id too many."""

import pickle

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

import vllm
from vllm.tokenizers import TokenizerRegistry

from selfspan_core.paths import BASE
from selfspan_core.serve.vllm_plugin import support
from selfspan_core.serve.vllm_plugin.plugin import register
from selfspan_core.serve.vllm_plugin.tokenizer import CheckedTokenizer, with_true_last_id


class Tokens:
    """As much of a tokenizer as is looked at; made again by its own arguments, as vLLM's are."""

    num_ids = 10

    def __init__(self, last: int) -> None:
        self._last = last

    @property
    def vocab_size(self) -> int:
        return self.num_ids

    @property
    def max_token_id(self) -> int:
        return self._last

    def get_vocab(self) -> dict[str, int]:
        return {str(number): number for number in range(self.num_ids)}

    def __reduce__(self):
        return Tokens, (self._last,)


class WithAdded(Tokens):
    """Added tokens lie above what `vocab_size` counts."""

    def get_vocab(self) -> dict[str, int]:
        return super().get_vocab() | {"added": 12}


@pytest.fixture
def registry(monkeypatch):
    """vLLM's tokenizers, as they were afterwards."""
    monkeypatch.setattr(TokenizerRegistry, "tokenizers", dict(TokenizerRegistry.tokenizers))
    return TokenizerRegistry.tokenizers


def test_the_last_id_is_one_that_the_model_has():
    """An id of a request that no embedding has: it passed vLLM's check and ended the server for everybody."""
    counted = with_true_last_id(Tokens(10))
    assert counted.max_token_id == 9
    assert counted.vocab_size == 10
    right, added = Tokens(9), WithAdded(12)
    assert with_true_last_id(right) is right
    assert type(right) is Tokens
    assert with_true_last_id(added).max_token_id == 12


def test_a_copy_in_another_process_knows_it_too():
    """The check of a tokenizer that vLLM sends to a process of its own."""
    assert pickle.loads(pickle.dumps(with_true_last_id(Tokens(10)))).max_token_id == 9


@pytest.mark.parametrize(("version", "is_ours"), [("0.26.0", True), ("0.31.0", True), ("0.32.0", False)])
def test_versions_that_count_right_keep_their_own(registry, monkeypatch, version, is_ours):
    """vLLM's tokenizer replaced where nothing is wrong with it, or left where one request ends the server."""
    own = registry["hf"]
    monkeypatch.setattr(vllm, "__version__", version)
    register()
    assert registry["hf"] == (support.CHECKED_TOKENIZER if is_ours else own)
    if is_ours:
        assert TokenizerRegistry.load_tokenizer_cls("hf") is CheckedTokenizer


def test_a_folder_is_read_as_by_vllm():
    """Ids that are not those of vLLM's own tokenizer, or a last one that the shipped model has not."""
    ours, own = CheckedTokenizer.from_pretrained(BASE), TokenizerRegistry.load_tokenizer("hf", BASE)
    assert ours.encode("12 + 3") == own.encode("12 + 3")
    assert ours.max_token_id == len(ours) - 1
