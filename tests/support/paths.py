"""Where the repository lies."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SHIPPED = ROOT / "assets" / "base"
"""The shipped base model and tokenizer."""
