"""Lanes side by side: the race, its display, and the verdict."""
