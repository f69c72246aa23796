"""Decoding: steps, sampling, rules, events."""
