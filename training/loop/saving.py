"""Saving a model whose tensors are partly one and the same."""

import contextlib
import logging
from collections.abc import Iterator

_LOGGER, _WARNING = "accelerate.utils.other", "Removed shared tensor"


@contextlib.contextmanager
def shared_tensors_expected() -> Iterator[None]:
    """While it is open, accelerate does not warn that it saves tied embeddings once: every checkpoint of them is so,
    and resuming ties them again."""
    logger = logging.getLogger(_LOGGER)

    def is_other(record: logging.LogRecord) -> bool:
        return _WARNING not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
