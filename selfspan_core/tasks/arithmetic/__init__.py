"""Arithmetic: expressions of small whole numbers, worked out one operation at a time."""
