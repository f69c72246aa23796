"""Where this copy of the project lies: code, and the assets that travel with it.

In a checkout the assets lie beside the packages; in an installed wheel they lie in this package (see pyproject.toml).
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
ASSETS = PACKAGE / "assets" if (PACKAGE / "assets").is_dir() else ROOT / "assets"
PAGE = ASSETS / "app"
"""Scripts, styles and templates of the page."""
BASE = ASSETS / "base"
ADAPTERS = ASSETS / "adapters"
