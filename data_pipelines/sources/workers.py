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
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import psutil

from defi_jax import errors

_START_SECONDS = 120.0  # until a new process has imported what it needs
_IN_FLIGHT = 3  # items a worker that are being worked on or wait for their turn


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How a function is called.

    Attributes:
        count: processes; 0 calls it in this one, without limits.
        seconds: wall time that one call may take.
        memory_bytes: what it may use beyond what a fresh process has.
    """

    count: int = 0
    seconds: float = 600.0
    memory_bytes: int = 2 * 1024**3


@dataclass(frozen=True)
class Failure:
    """A call that broke a limit, or its worker; the reason is one line."""

    reason: str


def run(
    function: Callable[[Any], Any], items: Iterable[Any], workers: Workers
) -> Generator[tuple[Any, Any], None, None]:
    """Yields (item, result or `Failure`) in the order of the items.

    Args:
        function: picklable, of one item. A `UserError` that it raises ends the run.
        items: picklable; consumed as workers become free.

    Raises:
        UserError: as the function did.
        RuntimeError: the function has a bug; the text is its traceback.
    """
    if not workers.count:
        for item in items:
            yield item, function(item)
        return
    crew = [_Worker(function, workers) for _ in range(workers.count)]
    try:
        yield from _map(crew, items)
    finally:
        for worker in crew:
            worker.kill()


@dataclass(eq=False)
class _Call:
    """An item, and in the end its result."""

    item: Any
    result: Any = None
    is_done: bool = False


def _map(crew: Sequence[_Worker], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    calls = map(_Call, items)
    waiting: collections.deque[_Call] = collections.deque()
    while True:
        for worker in crew:
            is_free = worker.call is None and len(waiting) < _IN_FLIGHT * len(crew)
            if is_free and (call := next(calls, None)):
                waiting.append(call)
                worker.start(call)
        if not waiting:
            return
        while waiting and waiting[0].is_done:
            call = waiting.popleft()
            yield call.item, call.result
        if busy := [worker for worker in crew if worker.call]:
            patience = min(worker.deadline for worker in busy) - time.monotonic()
            ready = connection.wait([worker.pipe for worker in busy], max(0.0, patience))
            for worker in busy:
                if worker.pipe in ready:
                    worker.receive()
                elif time.monotonic() >= worker.deadline:
                    worker.expire()


class _Worker:
    """One process and the call it is at.

    Attributes:
        call: None while idle.
        deadline: deadline of the call, in `time.monotonic`.
        pipe: this process' end.
    """

    def __init__(self, function: Callable[[Any], Any], limits: Workers):
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
        self.call: _Call | None = None
        self._has_started = False  # so that the deadline is the call's own

    def start(self, call: _Call) -> None:
        """Sends the item, to a process that reads it: a full pipe of another would block."""
        self.call = call
        patience = self._limits.seconds if self._has_started else _START_SECONDS
        self.deadline = time.monotonic() + patience
        if self._has_started:
            with contextlib.suppress(OSError):  # it died meanwhile, `receive` will find out
                self.pipe.send(call.item)

    def receive(self) -> None:
        """Takes what waits in the pipe: the call's result, or that the work begins only now."""
        assert self.call is not None
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join(timeout=5)
            code = self._process.exitcode
            cause = signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}"
            self._fail(f"its worker process died ({cause})")
            return
        if kind == "started":
            self._has_started = True
            self.start(self.call)
        elif kind == "error":
            raise value
        else:
            self._finish(value)

    def expire(self) -> None:
        """Ends a call that is late."""
        if not self._has_started:  # no fault of the item
            raise errors.UserError(
                f"a worker process did not start within {_START_SECONDS:g} s",
                "--workers",
                "run the same command again with fewer, or when the machine is less busy",
            )
        self._fail(f"took more than {self._limits.seconds:g} s")

    def _finish(self, result: Any) -> None:
        assert self.call is not None
        self.call.result, self.call.is_done = result, True
        self.call = None

    def _fail(self, reason: str) -> None:
        self._finish(Failure(reason))
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
    threading.Thread(target=_end_with_parent, daemon=True).start()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (used + memory_bytes, used + memory_bytes))
    pipe.send(("started", None))
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(_answer(function, pipe.recv(), memory_bytes))


def _end_with_parent() -> None:
    """Ends this process when its parent is killed, whatever it is at."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _answer(function: Callable[[Any], Any], item: Any, memory_bytes: int) -> tuple[str, Any]:
    try:
        return "result", function(item)
    except errors.UserError as error:
        return "error", error
    except MemoryError:
        return "result", Failure(f"needed more than {memory_bytes >> 20} MiB of memory")
    except Exception:  # passed on: a bug must not look like a damaged file
        return "error", RuntimeError(traceback.format_exc())
