"""A byte-level tokenizer that cuts letters in two."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from selfspan_core.models.tokenizer import SpanTokenizer

PROSE = "The council's old bridge isn't safe, the U.S. mayor of Zürich said: “École” cost 1,400 in May. " * 9


def byte_level() -> SpanTokenizer:
    """A tokenizer whose pieces are bytes, with few merges, so that letters are cut in two."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    tokenizer.train_from_iterator([PROSE], trainer)
    tokenizer.add_tokens(["<odd token ’>"])
    return SpanTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"))
