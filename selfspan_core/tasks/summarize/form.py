"""The form of a summary: instructions, lengths, and the numbers that the task, its rules and its training share."""

from typing import Literal

from selfspan_core.spans.protocol import NUM_ANCHORS

Length = Literal["short", "medium"]
Form = Literal["shorten", "rewrite"]

FORMS: tuple[Form, ...] = ("shorten", "rewrite")
INSTRUCTIONS: dict[Form, dict[Length, str]] = {
    "shorten": {"short": "Summarize briefly:", "medium": "Summarize:"},
    "rewrite": {"short": "Summarize briefly in your own words:", "medium": "Summarize in your own words:"},
}
"""By form and length. An adapter that learned one form alone, whichever it is, is asked as for shorten."""
CUE = "\nSummary:"
STEP_SEPARATOR = "\n"
MAX_STEPS: dict[str, int] = {"short": 2, "medium": 5}
MIN_STEPS: dict[str, int] = {"short": 2, "medium": 3}
MAX_READS = 2
MAX_SEGMENTS = NUM_ANCHORS - 8
"""Names of the article's segments; the others are for the steps."""
MAX_CONTEXT = 4096
"""Of a model that is not known yet; `Task.for_model` has the model's own."""
MAX_SUMMARY_TOKENS = 512
MAX_LEARNED_TOKENS = 1600
"""Of a single article in training (`training.summary_data`): what adapters learned whose record says nothing else."""
