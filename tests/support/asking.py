"""Requests as tests write them: settings by name, whatever object they travel in."""

from collections.abc import Iterable, Iterator

from selfspan_core.compare.session import TICK_SECONDS, PreparedRun, Session
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Event
from selfspan_core.engine.request import PromptRequest
from selfspan_core.params import Request, SamplingParams
from selfspan_core.spans.render import Rendered

SAMPLING = tuple(SamplingParams.__dataclass_fields__)


def apart(settings: dict) -> tuple[SamplingParams, dict]:
    """Sampling settings, and the others."""
    drawn = {name: value for name, value in settings.items() if name in SAMPLING}
    return SamplingParams(**drawn), {name: value for name, value in settings.items() if name not in SAMPLING}


def asked(prompt: Rendered, **settings) -> PromptRequest:
    """What an engine is asked."""
    sampling, others = apart(settings)
    return PromptRequest(prompt, sampling=sampling, **others)


def generate(
    engine: Engine, prompt: Rendered, attention: str = "dense", impl: str = "gather", **settings
) -> Iterator[Event]:
    """One answer's events."""
    return engine.generate(asked(prompt, **settings), attention, impl)


def generate_among(
    engine: Engine, prompt: Rendered, others: Iterable[Rendered], num_rows: int, attention: str = "dense", **settings
) -> Iterator[Event]:
    """One answer's events, among others."""
    return engine.generate_among(asked(prompt, **settings), others, num_rows, attention)


def request(task: str, text: str, adapter: str = "span", **settings) -> Request:
    """What a session is asked; a summary's `length` and `form` are options."""
    sampling, others = apart(settings)
    options = {name: others.pop(name) for name in ("length", "form") if name in others}
    return Request(task, text, options, adapter=adapter, sampling=sampling, **others)


def compare(
    session: Session, task: str, text: str, adapter: str = "span", tick_seconds: float = TICK_SECONDS, **settings
) -> Iterator[dict]:
    """A run's ticks."""
    return session.compare(request(task, text, adapter, **settings), tick_seconds)


def prepare(session: Session, task: str, text: str, attention: str = "both", adapter: str = "span", **settings):
    """A prepared run."""
    prepared: PreparedRun = session.prepare(request(task, text, adapter, attention=attention, **settings))
    return prepared
