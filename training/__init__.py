"""Tokenizer, base model, adapters and evaluation: the programs that make the contents of `assets/`."""
