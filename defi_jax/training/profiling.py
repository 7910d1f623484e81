"""A window of steps under jax's profiler: from a step on, or when the process gets SIGUSR1.

A trace is written to local files first and moved to `<workdir>/logs/profile` at the window's end,
in the layout that TensorBoard and xprof read. Each process that is asked traces itself.
"""

import logging
import pathlib
import tempfile
from typing import Any

import jax
from etils import epath

DIRECTORY = "profile"


class Window:
    """Traces steps when it is asked to; close it at the run's end.

    Args:
        directory: where traces go, local or in a bucket.
        start: steps taken before the window that nobody needs to ask for; 0 for none.
        count: steps of a window.
    """

    def __init__(self, directory: epath.Path, start: int, count: int):
        self._directory, self._start, self._count = directory, start, count
        self._end: int | None = None
        self._local: tempfile.TemporaryDirectory | None = None

    def is_due(self, now: int, is_asked: bool) -> bool:
        """Whether a window begins or ends after `now` steps; `is_asked` if somebody wants one."""
        if self._end is not None:
            return now >= self._end
        return is_asked or 0 < self._start == now

    def turn(self, now: int, outputs: Any) -> None:
        """Ends the window that is open, or begins one.

        Args:
            now: steps taken.
            outputs: of the last step, waited for at both ends of a window, and only there.
        """
        if self._end is not None:
            self._finish(outputs)
            return
        jax.block_until_ready(outputs)
        self._local, self._end = tempfile.TemporaryDirectory(), now + self._count
        logging.info("profiling steps %d to %d", now + 1, self._end)
        jax.profiler.start_trace(self._local.name)

    def close(self) -> None:
        """Ends a window that is open."""
        if self._end is not None:
            self._finish(None)

    def _finish(self, outputs: Any) -> None:
        assert self._local is not None
        jax.block_until_ready(outputs)
        jax.profiler.stop_trace()
        root = pathlib.Path(self._local.name)
        try:
            for path in (path for path in root.rglob("*") if path.is_file()):
                to = self._directory / path.relative_to(root).as_posix()
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(path.read_bytes())
            logging.info("the profile is in %s", self._directory)
        except Exception as error:  # a bucket's library has no common type
            logging.warning("%s: no profile: %s", self._directory, error)
        self._local.cleanup()
        self._local = self._end = None
