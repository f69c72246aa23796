"""Summaries: articles in, sentences that name their sources out."""
