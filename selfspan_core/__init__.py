"""selfspan: self-selected attention spans (arXiv 2404.09336) for language-model decoding."""
