"""A session for a server: models are loaded when first needed. No torch at import."""

import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from selfspan_core.errors import ImplUnavailable, ModelError, NotReady
from selfspan_core.models.registry import ModelSpec, usual_models
from selfspan_core.params import ADAPTERS, Request
from selfspan_core.paths import ROOT
from selfspan_core.serve.stores import make_store
from selfspan_core.tasks.registry import TASKS, get_task

if TYPE_CHECKING:
    from selfspan_core.serve.http_engine.served import Engines

log = logging.getLogger("selfspan")
_PATH = re.compile(r"(?<![\w:/.~])~?/(?:[\w.@+-]{1,100}/){1,40}(?=[\w.@+-])")
"""The folders of an absolute path; an address of the web has none."""


def public(error: Exception | str) -> str:
    """An error's message for users, without paths of the server's disk: of other files the name is left."""
    return _PATH.sub("", str(error).replace(f"{ROOT}/", ""))


def shipped_tasks(model: ModelSpec | None = None) -> tuple[str, ...]:
    """Tasks whose adapters are there; at least the first task, whose runs then report what is missing.

    Args:
        model: of all tasks; None: the usual one of each.
    """
    found = tuple(task for task in TASKS if (model or usual_models(task)[0]).has_both_adapters(task))
    return found or (next(iter(TASKS)),)


@contextmanager
def reasons() -> Iterator[None]:
    """Context that converts errors about unusable models into NotReady."""
    try:
        yield
    except ModelError as error:
        raise NotReady(f"The model is not ready: {public(error)}") from error
    except ImplUnavailable as error:
        raise NotReady(f"The model cannot run here: {public(error)}") from error


class LazySession:
    """The real session, made when it is first needed: importing this module loads neither torch nor weights.

    Args:
        impl: implementation of its lanes, one of `backends.ENGINE_IMPLS`; None: the device's default.
        model: of requests that name none; None: the usual one of their task.
        engines: servers that decode; None: models are loaded here.
    """

    def __init__(
        self, impl: str | None = None, model: ModelSpec | None = None, engines: "Engines | None" = None
    ) -> None:
        self._impl, self._model, self._engines = impl, model, engines
        self._models = self._session = None
        self._lock = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Context during which nothing is imported or loaded; callers that need the session wait until it closes."""
        with self._lock:
            yield

    def _load(self):
        """The session. Raises NotReady where this device cannot run it.

        The lock comes before the imports: transformers replaces its own entry in `sys.modules` while it is imported,
        and a thread that imports it at the same time can be left with the half of it that is thrown away.
        """
        with self._lock:
            if self._session is None:
                silence_libraries()
                from selfspan_core.compare.session import Session

                with reasons():
                    self._models = self._store()
                    self._session = Session(self._models)
            return self._session

    def compare(self, request: Request) -> Iterator[dict]:
        """See `compare.session.Session.compare`. Raises NotReady where a model is missing or cannot run."""
        session = self._load()
        with reasons():
            return session.compare(request)

    def _store(self):
        try:
            return make_store(self._engines, self._model, impl=self._impl)
        except ValueError as error:  # no such implementation, or no such device
            raise NotReady(f"The model cannot run here: {public(error)}") from error

    def can_load(self) -> bool:
        """Whether lanes can answer several requests at once here. Loads torch, and no weights."""
        try:
            return self._load().can_load
        except NotReady:  # every run will report the reason
            return False

    def can_pause(self) -> bool:
        """See `compare.session.Session.can_pause`."""
        try:
            return self._load().can_pause
        except NotReady:  # every run will report the reason
            return True

    def tasks(self) -> tuple[str, ...]:
        """Tasks that can be offered."""
        return shipped_tasks(self._model) if self._engines is None else (self._engines.span.record.task,)

    def loads(self) -> Iterator[str]:
        """Load the models of requests that name none, with their tasks' adapters; a model's name after each.

        Raises NotReady where a model is missing or cannot run.
        """
        self._load()
        with reasons():
            for task in self.tasks():
                chosen = self._models.choose(task)
                if chosen.notice:
                    log.warning("%s", chosen.notice)
                for adapter in self._models.terms.adapters:
                    self._models.engine(task, adapter)
                    yield chosen.spec.name

    def first_requests(self) -> Iterator[Request]:
        """A request of each kind that the page offers: what they capture and measure serves all later ones.

        Where steps are captured here, the longest examples, for later ones find room where those did; else the page's
        first ones, which do not keep a CPU's first visitors waiting for long.
        """
        is_captured = self._engines is None and self.can_load()
        for name in self.tasks():
            examples = get_task(name).examples
            text = max(examples, key=len) if is_captured else examples[len(examples) // 2]
            for adapter in ADAPTERS if self._engines is None else self._engines.by_adapter:
                yield Request(name, text, adapter=adapter)


def silence_libraries() -> None:
    """Keep progress bars and advice of the libraries out of this process's output; before they are imported.

    It imports transformers itself, so a process with several threads calls it under the lock of its other imports.
    """
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    from transformers.utils import logging

    logging.disable_progress_bar()
