"""What a request tells vLLM's worker of its spans, as `SamplingParams.extra_args["selfspan"]`. No torch, no vLLM here.

    {"attention": "sparse", "scaffold_end": 6, "segments": [[8, 6, 9], [9, 10, 13]]}

`segments` holds [id of the anchor, start, end] for every named segment of the prompt: where a segment ends cannot be
told from ids. vLLM's HTTP server takes no nested objects there, so the same may come as JSON text.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from selfspan_core.errors import SettingError, brief
from selfspan_core.params import whole_number
from selfspan_core.spans.protocol import NUM_ANCHORS, PromptLayout

KEY = "selfspan"
ATTENTIONS = ("dense", "sparse")
MAX_POSITION = 2**31 - 1
MAX_JSON_CHARS = 1 << 16
_FIELDS = {"attention", "scaffold_end", "segments"}


@dataclass(frozen=True)
class SpanSettings:
    """A request's attention and, for "sparse", where the pieces of its prompt lie.

    Attributes:
        attention: "dense" reads everything; "sparse" reads what the answer declares.
        scaffold_end: the scaffold is `[0, scaffold_end)`.
        segments: (anchor id, start, end) of each named segment of the prompt, cache positions.
    """

    attention: Literal["dense", "sparse"]
    scaffold_end: int = 0
    segments: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def of_prompt(cls, attention: Literal["dense", "sparse"], prompt: PromptLayout) -> "SpanSettings":
        """The settings of a rendered prompt."""
        if attention == "dense":
            return cls("dense")
        segments = tuple((name, start, end) for name, (start, end) in prompt.segments.items())
        return cls("sparse", prompt.scaffold_end, segments)

    @classmethod
    def read(cls, extra_args: Mapping[str, Any] | None) -> "SpanSettings | None":
        """The settings in a request's extra arguments; None of a request that says nothing of spans.

        Raises:
            SettingError: they are not what the module's docstring says.
        """
        given = (extra_args or {}).get(KEY)
        if given is None:
            return None
        if isinstance(given, str):
            given = _parsed(given)
        if not isinstance(given, Mapping):
            raise SettingError(f"{KEY} is an object, or one as JSON text, not {brief(given)}.", KEY)
        unknown = sorted(str(name) for name in given.keys() - _FIELDS)
        if unknown:
            raise SettingError(f"{KEY} has {', '.join(sorted(_FIELDS))}, and no {brief(unknown[0])}.", KEY)
        attention = given.get("attention")
        if attention not in ATTENTIONS:
            raise SettingError(f"{KEY}: the attention is {' or '.join(ATTENTIONS)}, not {brief(attention)}.", KEY)
        if attention == "dense":
            return cls("dense")
        if "scaffold_end" not in given:
            raise SettingError(f"{KEY}: sparse attention needs scaffold_end and segments of the prompt.", KEY)
        scaffold_end = whole_number(f"{KEY}: scaffold_end", given["scaffold_end"], 0, MAX_POSITION)
        return cls("sparse", scaffold_end, _segments(given.get("segments")))

    def to_extra_args(self, as_text: bool = False) -> dict[str, Any]:
        """Extra arguments that `read` reads; `as_text` for vLLM's HTTP server (`vllm_xargs`)."""
        said: dict[str, Any] = {"attention": self.attention}
        if self.attention == "sparse":
            said |= {"scaffold_end": self.scaffold_end, "segments": [list(segment) for segment in self.segments]}
        return {KEY: json.dumps(said) if as_text else said}

    def cache_salt(self, num_prompt_tokens: int) -> str | None:
        """What keeps this request's pages in vLLM's prefix cache apart from those of others; None: nothing has to.

        vLLM finds pages by the ids in them. Keys and values of an answer's ids also depend on what those ids saw: a
        prompt that goes on with the answer of a sparse request must not find that request's pages, and neither must a
        dense request that wrote the same answer.
        """
        if self.attention == "dense":
            return None
        said = json.dumps([num_prompt_tokens, self.scaffold_end, sorted(self.segments)])
        return f"{KEY}-{hashlib.sha256(said.encode()).hexdigest()[:32]}"

    def layout(self, num_prompt_tokens: int) -> PromptLayout:
        """The prompt's layout. What lies behind the end of the prompt is cut off: no request can read beyond itself."""
        bounds = {name: (start, min(end, num_prompt_tokens)) for name, start, end in self.segments}
        segments = {name: (start, end) for name, (start, end) in bounds.items() if start < end}
        return PromptLayout(num_prompt_tokens, min(self.scaffold_end, num_prompt_tokens), segments)


def _parsed(text: str) -> Any:
    if len(text) > MAX_JSON_CHARS:
        raise SettingError(f"{KEY} has more than {MAX_JSON_CHARS:,} characters.", KEY)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise SettingError(f"{KEY} is not JSON: {brief(text)}.", KEY) from None


def _segments(given: Any) -> tuple[tuple[int, int, int], ...]:
    if not isinstance(given, list | tuple) or len(given) > NUM_ANCHORS:
        raise SettingError(f"{KEY}: segments is a list of at most {NUM_ANCHORS} segments, not {brief(given)}.", KEY)
    segments = []
    for segment in given:
        if not isinstance(segment, list | tuple) or len(segment) != 3:
            raise SettingError(f"{KEY}: a segment is [anchor id, start, end], not {brief(segment)}.", KEY)
        name, start, end = (whole_number(f"{KEY}: a segment's number", one, 0, MAX_POSITION) for one in segment)
        if start >= end:
            raise SettingError(f"{KEY}: a segment's start is below its end, unlike {brief(segment)}.", KEY)
        segments.append((name, start, end))
    if len({name for name, _, _ in segments}) != len(segments):
        raise SettingError(f"{KEY}: two segments share a name.", KEY)
    return tuple(segments)
