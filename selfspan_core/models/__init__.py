"""Models, their tokenizers and their names."""
