"""One line for a failed save, not the thousands that the checkpoint library adds to it."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Drops, within a block, tracebacks of the library's threads: their error is raised as well.

    Its storage layer also prints one for each write that was under way, as their event loop is
    gone, through the hooks of errors that nobody catches, which end a process of many.
    """
    logger, hook, unraisable = logging.getLogger("absl"), sys.excepthook, sys.unraisablehook

    def wanted(record: logging.LogRecord) -> bool:
        return not (record.levelno >= logging.ERROR and "orbax" in record.pathname)

    def is_noise(error: Any) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    def excepthook(kind: Any, error: Any, trace: Any) -> None:
        if not is_noise(error):
            hook(kind, error, trace)

    def unraisablehook(what: Any) -> None:
        if not is_noise(what.exc_value):
            unraisable(what)

    logger.addFilter(wanted)
    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook
    try:
        yield
    finally:
        logger.removeFilter(wanted)
        sys.excepthook, sys.unraisablehook = hook, unraisable
