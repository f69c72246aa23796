"""Where this copy of the project lies: code, and the assets that travel with it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "assets"
PAGE = ASSETS / "app"
"""Scripts, styles and templates of the page."""
BASE = ASSETS / "base"
ADAPTERS = ASSETS / "adapters"
