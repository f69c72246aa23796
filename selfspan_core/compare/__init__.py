"""Lanes side by side: the race, what is shown of it, and the verdict."""
