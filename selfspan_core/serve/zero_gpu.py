"""The session of a Space on ZeroGPU, where a GPU is lent for each call and CUDA exists in forked workers only.

The server's process checks inputs and waits; whatever touches CUDA happens in a worker, inside the generator that
`spaces.GPU` decorates, and comes back as plain objects. A worker that is kept keeps its models. No torch at import.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from typing import Any

from selfspan_core.errors import InputError, NotReady, TooLongError
from selfspan_core.params import MAX_NEW_TOKENS, Request
from selfspan_core.serve.lazy_session import LazySession, public
from selfspan_core.tasks.base import read_pasted
from selfspan_core.tasks.registry import TASKS, get_task

IMPL = "gather"
"""Steps captured in a graph would be captured anew in every worker, for longer than an answer takes."""
START_S = 15.0
TOKEN_S = 0.006
TOKENS_OF_A_CHARACTER = 9
MOST_S = 120


def is_zero_gpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process serves a Space on ZeroGPU."""
    return environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def seconds(request: Request) -> int:
    """The longest that a run takes, for which a GPU is asked; who asks for less is served sooner.

    Both lanes' tokens at the rate of two busy CPU cores, measured with `make rehearse-space`, which a GPU is never
    slower than, and the start of a worker: see docs/hosting.md.
    """
    most = min(request.sampling.max_new_tokens or MAX_NEW_TOKENS, TASKS[request.task].page.max_new_tokens)
    tokens = min(TOKENS_OF_A_CHARACTER * len(request.text), most)
    return min(round(START_S + 2 * TOKEN_S * tokens), MOST_S)


class ZeroGpuSession:
    """As LazySession, with every run in a worker that has a GPU.

    Args:
        session: loaded in the workers, never in this process.
        gpu: the decorator `spaces.GPU`.
    """

    def __init__(self, session: LazySession, gpu: Callable[..., Callable]) -> None:
        self._session = session
        # At import, before the app is launched: a Space on ZeroGPU does not start without a decorated function.
        self._in_worker = gpu(duration=seconds)(self._run)

    def compare(self, request: Request) -> Iterator[dict]:
        """See `compare.session.Session.compare`. A bad input costs nothing of the visitor's share of a GPU."""
        read_pasted(get_task(request.task, **request.options), request.text, request.clean)
        return self._ticks(request)

    def _ticks(self, request: Request) -> Iterator[dict]:
        with closing(self._in_worker(request)) as told:
            for kind, value in told:
                if kind != "tick":
                    raise _ERRORS[kind](*value)
                yield value

    def _run(self, request: Request) -> Iterator[tuple[str, Any]]:
        """In a worker: ticks, and errors as what they are made of, for `spaces` keeps only the names of others."""
        try:
            with closing(self._session.compare(request)) as ticks:
                for tick in ticks:
                    yield "tick", tick
        except TooLongError as error:
            yield "too long", (str(error), error.beginning)
        except InputError as error:
            yield "input", (str(error),)
        except NotReady as error:
            yield "not ready", (str(error),)
        except Exception as error:
            yield "failed", (public(error),)

    def can_load(self) -> bool:
        """Whether lanes can answer several requests at once."""
        return False

    def can_pause(self) -> bool:
        """A run that rests would keep its GPU, and use up its visitor's share of it."""
        return False

    def held(self) -> AbstractContextManager[None]:
        """See LazySession."""
        return self._session.held()

    def loads(self) -> Iterator[str]:
        """Import what workers need, so that each of them begins with it; models are loaded there."""
        from selfspan_core.compare import session
        from selfspan_core.engine import model_store

        yield session.__name__
        yield model_store.__name__

    def first_requests(self) -> Iterator[Request]:
        """None: there is no GPU yet, and nobody whose share of one it would be."""
        return iter(())


_ERRORS: dict[str, type[Exception]] = {
    "too long": TooLongError,
    "input": InputError,
    "not ready": NotReady,
    "failed": RuntimeError,
}
