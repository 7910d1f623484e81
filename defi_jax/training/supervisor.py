"""What keeps a run from hanging or dying silently: signals, watchdog, processes of many hosts.

SIGTERM asks for a save and exit code 75. A phase that outlives its deadline ends the process with
exit code 124 and the stacks of all threads. With several processes an exception ends its process
at once: a normal exit would wait for peers that wait for it.
"""

import contextlib
import dataclasses
import faulthandler
import logging
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from defi_jax import errors

WATCHDOG_EXIT_CODE = 124

# Environment variables that say that this process is one of several.
_CLUSTER_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS")
_PLACE = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_TPU_WORKERS = "TPU_WORKER_HOSTNAMES"
_HEARTBEAT_TIMEOUT_SECONDS = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds a phase may take before the watchdog ends the process.

    A step's is longer than XLA's own collective timeout (10 minutes), so that its message wins.
    """

    startup: float = 7200.0
    step: float = 900.0
    data: float = 900.0
    eval: float = 7200.0
    save: float = 3600.0


class Supervisor:
    """Watches one training process; use as a context manager around the run.

    Args:
        log_dir: local directory for `hang_<process>.txt`.
        deadlines: see Deadlines.
    """

    def __init__(self, log_dir: str, deadlines: Deadlines | None = None):
        self._log_dir = pathlib.Path(log_dir)
        self._deadlines = deadlines or Deadlines()
        self._lock = threading.Lock()
        self._phase, self._expires = "startup", time.monotonic() + self._deadlines.startup
        self._stop = threading.Event()
        self._terminate = threading.Event()
        self._restore_handler: Any = None

    def __enter__(self) -> "Supervisor":
        # With jax.distributed its own C++ handler must stay the only one (reliability.md 0.7).
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._restore_handler = signal.signal(signal.SIGTERM, self._on_sigterm)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._stop.set()
        if self._restore_handler is not None:
            signal.signal(signal.SIGTERM, self._restore_handler)
        if error is not None and jax.process_count() > 1:
            _die(error)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Runs a block under the deadline of `name`; "startup" or "step" follows it again."""
        before = self._phase
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def enter(self, name: str) -> None:
        """Starts the deadline of a phase anew; also the sign of life within a long one."""
        with self._lock:
            self._phase = name
            self._expires = time.monotonic() + getattr(self._deadlines, name)

    def should_stop(self, step: int) -> bool:
        """Whether the run was asked to stop; on many hosts, all get the same answer at one step.

        Must be called for every step by every process.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._terminate.is_set()

    def stop_requested(self) -> bool:
        """Whether this process saw SIGTERM; for work that may be cut short, such as evaluation."""
        return self._terminate.is_set()

    def _on_sigterm(self, signum: int, frame: Any) -> None:
        del signum, frame
        self._terminate.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._deadlines.step / 4)):
            with self._lock:
                phase, late = self._phase, time.monotonic() - self._expires
            if late > 0:
                self._dump(phase)
                os._exit(WATCHDOG_EXIT_CODE)

    def _dump(self, phase: str) -> None:
        seconds = getattr(self._deadlines, phase)
        print(
            f"error: no progress: phase '{phase}' took more than {seconds:.0f} s; "
            f"stacks of all threads follow and are in {self._log_dir}",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self._log_dir.mkdir(parents=True, exist_ok=True)
        with (self._log_dir / f"hang_{jax.process_index()}.txt").open("w") as file:
            faulthandler.dump_traceback(file=file, all_threads=True)


@contextlib.contextmanager
def processes(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Joins the other processes of a run for a block; an error in it ends this process at once.

    Enter before anything touches a device. One process needs nothing, and nothing happens to it.
    """
    initialize_processes(environ)
    try:
        yield
    except BaseException as error:
        if jax.distributed.is_initialized():
            _die(error)
        raise


def initialize_processes(environ: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of a run, when the environment says that there are any.

    A cluster that jax knows says who is who. Elsewhere each process is given the same
    JAX_COORDINATOR_ADDRESS=host:port and JAX_NUM_PROCESSES, and its own JAX_PROCESS_ID from 0.

    Raises:
        UserError: only one of the last two is given, or it is no number.
    """
    several_workers = "," in environ.get(_TPU_WORKERS, "")
    if not several_workers and not any(name in environ for name in _CLUSTER_VARIABLES):
        return
    num_processes, process_id = _place(environ)
    jax.distributed.initialize(
        num_processes=num_processes,
        process_id=process_id,
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS,
    )
    sys.excepthook = lambda kind, error, trace: _die(error)
    threading.excepthook = lambda args: _die(args.exc_value)
    logging.info("process %d of %d", jax.process_index(), jax.process_count())


def _place(environ: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Returns (number of processes, this one's id), both None where the cluster knows them."""
    given = [environ.get(name) for name in _PLACE]
    if given == [None, None]:
        return None, None
    if not all(text is not None and text.isdecimal() for text in given):
        raise errors.UserError(
            f"{_PLACE[0]}={given[0]}, {_PLACE[1]}={given[1]}",
            "environment",
            "give numbers for both, the second below the first",
        )
    return int(str(given[0])), int(str(given[1]))


def barrier(name: str) -> None:
    """Waits until every process of the run is here; one process does not wait."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _die(error: BaseException | None) -> None:
    """Reports an error and leaves at once, past the barriers of a normal exit."""
    if isinstance(error, errors.UserError):
        print(f"error: {error}", file=sys.stderr)
    elif error is not None:
        traceback.print_exception(error)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code(error))


def exit_code(error: BaseException | None) -> int:
    """Exit code of a process that ends with `error` (design: 'Exit codes')."""
    if isinstance(error, errors.UserError):
        return error.exit_code
    return 0 if error is None else 1


def is_primary() -> bool:
    """Whether this process writes the run's files."""
    return jax.process_index() == 0
