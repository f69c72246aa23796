"""The page's script and styles, each put together from files with one job.

gradio takes one script, the body of a function, and a list of style sheets. It parses the style sheets and writes them
out again with a prefix: of rules, only plain ones and those in `@media` and `@keyframes` survive, and a `@container`
only inside a plain rule.
"""

from pathlib import Path
from typing import Any

from selfspan_core.paths import PAGE
from selfspan_core.serve.feed import dumps

RECORDED = PAGE / "recorded.json"
"""A real run that the page plays until a visitor runs something; `serve.record` writes it."""
SCRIPTS = (
    *(
        "words",
        "clipboard",
        "code",
        "source",
        "steps",
        "cited",
        "reading",
        "pane",
        "prompts",
        "map_paint",
        "map",
        "stage",
    ),
    *("chart", "headline", "large", "player", "form", "asks", "address", "account", "view", "trace", "picture", "keep"),
    *("history", "race"),
)
"""Files of `assets/app/race` in the order in which they run; `race` wires what those before it define."""
STYLES = (
    *("colours", "frame", "controls", "card", "map", "chart", "source", "code", "pane", "steps", "reading", "keep"),
    "forced",
)
"""Files of `assets/app/style` in the order in which they apply."""


def markup(name: str) -> str:
    """HTML of `stage`, result and read maps, or of `race`, the lanes' text; none of it comes from users or models."""
    return (PAGE / "race" / f"{name}.html").read_text(encoding="utf-8")


def recorded() -> str | None:
    """The recorded run as a payload for the page; None where there is none."""
    return RECORDED.read_text(encoding="utf-8").strip() if RECORDED.is_file() else None


def script(**facts: Any) -> str:
    """The race's JavaScript: the body of one function.

    Args:
        facts: what it has to know of this server, by names; its `facts`. Not among the component's own values: gradio
            copies and compares all of those whenever one of them changes.
    """
    files = ((PAGE / "race" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    return "\n".join([f"const facts = {dumps(facts)};", *files])


def feed_script() -> str:
    """The JavaScript of the component that payloads arrive at."""
    return (PAGE / "feed.js").read_text(encoding="utf-8")


def styles() -> list[Path]:
    """The page's style sheets."""
    return [PAGE / "style" / f"{name}.css" for name in STYLES]
