"""What an engine is asked to answer: a prompt, and the settings as the user's request carried them. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.device_rules import DeviceRules
from selfspan_core.engine.drafts import Drafter
from selfspan_core.engine.rules import Rules
from selfspan_core.params import MAX_SEED, SamplingParams
from selfspan_core.spans.render import Rendered


@dataclass(frozen=True)
class PromptRequest:
    """One prompt to answer.

    Attributes:
        prompt: a rendered prompt; only `ids` up to `prompt.num_tokens` are used.
        annotated: whether the model is to write steps (a plain adapter does not: its text is not malformed).
        sampling: how tokens are drawn, and how many at most.
        rules: what may be written next, id by id: rules of this run alone, which the host asks before every step; or
            what a captured step has to know to keep them by itself (`Engine.rules`). The ids are the same.
        drafter: what proposes drafts on the host, of this run alone; or what a captured step has to know to propose
            them by itself. Nothing but the time changes, and in 16 bits near ties.
        forced_tokens: write these ids instead of drawing, for tests and measurements.
        with_logits: attach to each Token the logits that it was drawn from.
        is_watched: whether its events are wanted; else its tokens are drawn and counted, no more.

    Raises:
        ValueError: `forced_tokens` is empty; or a captured step would draft past rules that the host keeps.
    """

    prompt: Rendered
    annotated: bool = True
    sampling: SamplingParams = field(default_factory=SamplingParams)
    rules: Rules | DeviceRules | None = None
    drafter: Drafter | DeviceDrafts | None = None
    forced_tokens: Sequence[int] | None = None
    with_logits: bool = False
    is_watched: bool = True

    def __post_init__(self) -> None:
        if self.forced_tokens is not None and not self.forced_tokens:
            raise ValueError("forced_tokens is empty")
        if self.host_rules is not None and isinstance(self.drafter, DeviceDrafts):
            raise ValueError("drafter: where the host keeps a request's rules, it proposes the drafts, too")

    @property
    def host_rules(self) -> Rules | None:
        """Rules that the host keeps."""
        return None if isinstance(self.rules, DeviceRules) else self.rules

    @property
    def device_rules(self) -> DeviceRules | None:
        """Rules that a captured step keeps by itself."""
        return self.rules if isinstance(self.rules, DeviceRules) else None

    @property
    def host_drafter(self) -> Drafter | None:
        """What proposes drafts on the host."""
        return None if isinstance(self.drafter, DeviceDrafts) else self.drafter

    @property
    def sees_index(self) -> bool:
        """Whether its headers see an index; see `PromptLayout.head_tokens`."""
        return self.annotated and self.prompt.prompt.head_tokens is not None

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt's ids."""
        return self.prompt.ids[: self.prompt.prompt.num_tokens]

    @property
    def most_tokens(self) -> int | None:
        """Most tokens to write, whatever the context holds; None: no limit."""
        limits = [self.sampling.max_new_tokens, None if self.forced_tokens is None else len(self.forced_tokens)]
        return min((limit for limit in limits if limit is not None), default=None)

    def beside(self, number: int, prompt: Rendered) -> "PromptRequest":
        """The same asked of another prompt, the `number`-th beside this one, drawn with a seed of its own; unwatched.

        Rules are of one prompt, and a drafter on the host of one run alone, so the other has none.
        """
        drafter = self.drafter if isinstance(self.drafter, DeviceDrafts) else None
        seed = (self.sampling.seed + number) % (MAX_SEED + 1)
        sampling = replace(self.sampling, seed=seed)
        return replace(self, prompt=prompt, rules=None, drafter=drafter, sampling=sampling, is_watched=False)
