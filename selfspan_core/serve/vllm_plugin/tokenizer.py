"""The tokenizer of older versions of vLLM, whose last id is one too large.

vLLM refuses ids that a model has not by the tokenizer's last id, as which versions before 0.32 take the number of ids.
Where a model has no more rows than its tokenizer has ids, a request with that very id reaches the embedding, and on
CUDA the error of one request ends the server for all of them.
"""

from typing import Any

from vllm.tokenizers.hf import CachedHfTokenizer


class CheckedTokenizer:
    """In the place of vLLM's `CachedHfTokenizer`: see `vllm.tokenizers.TokenizerRegistry`."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """vLLM's own, with the last id that it really has; arguments are those of vLLM's own."""
        return with_true_last_id(CachedHfTokenizer.from_pretrained(*args, **kwargs))


def with_true_last_id(tokenizer: Any) -> Any:
    """A tokenizer whose `max_token_id` is an id: itself, of another class where it was not."""
    last = max([*tokenizer.get_vocab().values(), tokenizer.vocab_size - 1])
    if tokenizer.max_token_id <= last:
        return tokenizer
    made_by = tokenizer.__class__

    class Checked(made_by):
        @property
        def max_token_id(self) -> int:
            return last

        def __reduce__(self) -> Any:
            make, args = super().__reduce__()
            return _made_again, (make, args)

    Checked.__name__ = made_by.__name__
    tokenizer.__class__ = Checked
    return tokenizer


def _made_again(make: Any, args: tuple) -> Any:
    return with_true_last_id(make(*args))
