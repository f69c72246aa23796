"""A task that only tests know."""
