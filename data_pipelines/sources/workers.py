"""Runs a function over many files in worker processes that may be killed.

Decoders of untrusted files hang, exhaust memory or crash. Each call therefore has a deadline and a
memory limit, and a worker that breaks either is replaced; its item becomes a `Failure`, the others
go on. Results come in the order of the items, whatever the number of workers, and only a few of
them wait at a time, so that memory stays bounded.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import psutil

from defi_jax import errors

_START_SECONDS = 120.0  # until a new process has imported what it needs
_IN_FLIGHT = 3  # items a worker that are being worked on or wait for their turn


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one call may use.

    Attributes:
        seconds: wall time.
        memory_bytes: beyond what a fresh worker has.
    """

    seconds: float = 600.0
    memory_bytes: int = 2 * 1024**3


@dataclass(frozen=True)
class Failure:
    """A call that broke a limit, or its worker.

    Attributes:
        reason: one line.
    """

    reason: str


def run(
    function: Callable[[Any], Any], items: Iterable[Any], *, workers: int, limits: Limits
) -> Iterator[tuple[Any, Any]]:
    """Yields (item, result or `Failure`) in the order of the items.

    Args:
        function: picklable, of one item. A `UserError` that it raises ends the run.
        items: picklable; consumed as workers become free.
        workers: processes; 0 calls the function here, without limits.
        limits: limits of one call.

    Raises:
        UserError: as the function did.
        RuntimeError: the function has a bug; the text is its traceback.
    """
    if not workers:
        for item in items:
            yield item, function(item)
        return
    pool = _Pool(function, workers, limits)
    try:
        yield from pool.map(items)
    finally:
        pool.close()


class _Pool:
    """Some workers, and the order of their results."""

    def __init__(self, function: Callable[[Any], Any], workers: int, limits: Limits):
        self._limits = limits
        self._workers = [_Worker(function, limits) for _ in range(workers)]
        self._results: dict[int, Any] = {}

    def map(self, items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        source = enumerate(items)
        waiting: collections.deque[tuple[int, Any]] = collections.deque()
        is_exhausted = False
        while True:
            while not is_exhausted and len(waiting) < _IN_FLIGHT * len(self._workers):
                idle = next((worker for worker in self._workers if worker.task is None), None)
                if idle is None:
                    break
                task = next(source, None)
                is_exhausted = task is None
                if task is not None:
                    waiting.append(task)
                    idle.start(task)
            if not waiting:
                return
            while waiting and waiting[0][0] in self._results:
                number, item = waiting.popleft()
                yield item, self._results.pop(number)
            self._wait()

    def _wait(self) -> None:
        """Collects what the busy workers have finished, or failed to."""
        busy = [worker for worker in self._workers if worker.task is not None]
        if not busy:
            return
        first_deadline = min(worker.deadline for worker in busy)
        patience = max(0.0, first_deadline - time.monotonic())
        ready = connection.wait([worker.pipe for worker in busy], patience)
        for worker in busy:
            assert worker.task is not None
            number = worker.task[0]
            if worker.pipe in ready:
                result = worker.receive()
                if worker.task is None:
                    self._results[number] = result
            elif time.monotonic() >= worker.deadline:
                if not worker.is_ready:  # no fault of the item
                    raise errors.UserError(
                        f"a worker process did not start within {_START_SECONDS:g} s",
                        "--workers",
                        "run the same command again with fewer, or when the machine is less busy",
                    )
                worker.replace()
                self._results[number] = Failure(f"took more than {self._limits.seconds:g} s")

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()


class _Worker:
    """One process and the task it is at.

    Attributes:
        task: (number, item), or None while idle.
        deadline: deadline of the task, in `time.monotonic`.
        is_ready: whether the process has started, so that the deadline is the task's own.
        pipe: this process' end.
    """

    def __init__(self, function: Callable[[Any], Any], limits: Limits):
        self._function, self._limits = function, limits
        self._spawn()

    def _spawn(self) -> None:
        # Arrow's own allocator reserves 1 GiB of address space, half of a usual limit: decoders had
        # none left for their threads, and good videos counted as damaged.
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
        # A forked child would inherit the parent's threads and their locks.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, self._function, self._limits.memory_bytes)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self.task: tuple[int, Any] | None = None
        self.is_ready = False
        self.deadline = 0.0

    def start(self, task: tuple[int, Any]) -> None:
        self.task = task
        patience = self._limits.seconds if self.is_ready else _START_SECONDS
        self.deadline = time.monotonic() + patience
        if self.is_ready:
            self._send()

    def _send(self) -> None:
        """Sends the task's item; only to a process that reads it, as a full pipe would block."""
        assert self.task is not None
        with contextlib.suppress(OSError):  # it died meanwhile, `receive` will find out
            self.pipe.send(self.task[1])

    def receive(self) -> Any:
        """Takes what waits in the pipe: the task's result, or that the work begins only now."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join(timeout=5)
            code = self._process.exitcode
            self.replace()
            cause = signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}"
            return Failure(f"its worker process died ({cause})")
        if kind == "ready":
            self.is_ready = True
            self.deadline = time.monotonic() + self._limits.seconds
            self._send()
            return None
        self.task = None
        if kind == "error":
            error_type, what, where, fix = value
            raise error_type(what, where, fix)
        if kind == "bug":
            raise RuntimeError(value)
        return value

    def replace(self) -> None:
        self.kill()
        self._spawn()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


# ---- in a worker process ----


def _serve(pipe: connection.Connection, function: Callable[[Any], Any], memory_bytes: int) -> None:
    """Answers items with (kind, value) until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (used + memory_bytes, used + memory_bytes))
    pipe.send(("ready", None))
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        pipe.send(_answer(function, item, memory_bytes))


def _answer(function: Callable[[Any], Any], item: Any, memory_bytes: int) -> tuple[str, Any]:
    try:
        return "result", function(item)
    except errors.UserError as error:
        return "error", (type(error), error.what, error.where, error.fix)
    except MemoryError:
        return "result", Failure(f"needed more than {memory_bytes >> 20} MiB of memory")
    except Exception:  # passed on: a bug must not look like a damaged file
        return "bug", traceback.format_exc()
