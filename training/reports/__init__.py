"""Results files as Markdown."""
