"""One line for a failed save, not what the checkpoint library adds: more lines, and late writes."""

import contextlib
import gc
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any


def _is_wanted(record: logging.LogRecord) -> bool:
    """Whether a record is not an error of the library's that is raised as well."""
    if record.levelno < logging.ERROR:
        return True
    if record.name != "asyncio":
        return "orbax" not in record.pathname
    text = record.getMessage()
    places = text + " ".join(_files(record.exc_info))
    return "never retrieved" not in text or not ("orbax" in places or "zarr" in places)


def _files(exc_info: Any) -> list[str]:
    """Names of the files that an error came through; a future's own text may not say its own."""
    trace = exc_info[2] if exc_info else None
    return [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Drops tracebacks of the library's threads: their error is raised as well.

    Its storage layer also prints one for each write that was under way, as their event loop is
    gone, through the hooks of errors that nobody catches, which end a process of many. Hooks hold
    within the block; records are dropped after it too, as a thread or a task may outlive it.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_wanted)
    hook, unraisable = sys.excepthook, sys.unraisablehook

    def is_noise(error: Any) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    def excepthook(kind: Any, error: Any, trace: Any) -> None:
        if not is_noise(error):
            hook(kind, error, trace)

    def unraisablehook(what: Any) -> None:
        if not is_noise(what.exc_value):
            unraisable(what)

    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook
    try:
        yield
    finally:
        gc.collect()  # what was forgotten speaks now
        sys.excepthook, sys.unraisablehook = hook, unraisable


def join_threads(seconds: float = 5.0) -> None:
    """Waits for threads of the library that outlive a failure and its `close`: they still write."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            threading.Thread.join(thread, seconds)  # its own raises what the thread met
