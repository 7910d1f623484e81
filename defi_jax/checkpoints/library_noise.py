"""One line for a failed save, not the thousands that the checkpoint library adds to it."""

import contextlib
import gc
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
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    hook, unraisable = sys.excepthook, sys.unraisablehook
    dropped = 0

    def wanted(record: logging.LogRecord) -> bool:
        nonlocal dropped
        if record.levelno < logging.ERROR:
            return True
        if record.name == "asyncio":
            text = record.getMessage()
            is_noise = "never retrieved" in text and ("orbax" in text or "zarr" in text)
        else:
            is_noise = "orbax" in record.pathname
        dropped += is_noise
        return not is_noise

    def is_noise(error: Any) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    def excepthook(kind: Any, error: Any, trace: Any) -> None:
        if not is_noise(error):
            hook(kind, error, trace)

    def unraisablehook(what: Any) -> None:
        if not is_noise(what.exc_value):
            unraisable(what)

    for logger in loggers:
        logger.addFilter(wanted)
    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook
    try:
        yield
    finally:
        if dropped:
            gc.collect()  # asyncio speaks when it forgets what failed
        for logger in loggers:
            logger.removeFilter(wanted)
        sys.excepthook, sys.unraisablehook = hook, unraisable
