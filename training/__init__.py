"""Tokenizer, base model, adapters and evaluation: everything that makes what `assets/` holds."""
