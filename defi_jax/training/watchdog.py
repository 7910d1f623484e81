"""What keeps a run from hanging or dying silently: signals and the watchdog.

A signal asks for a save and exit code 75 (stop_signals.py). A phase that outlives its deadline ends
the process with exit code 124 and the stacks of all threads.
"""

import contextlib
import dataclasses
import faulthandler
import os
import pathlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from defi_jax import processes
from defi_jax.training import stop_signals

WATCHDOG_EXIT_CODE = 124


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

    `log_dir` is a local directory for `hang_<process>.txt`.
    """

    def __init__(self, log_dir: str, deadlines: Deadlines | None = None):
        self._log_dir = pathlib.Path(log_dir)
        self._deadlines = deadlines or Deadlines()
        self._lock = threading.Lock()
        self._phase, self._expires = "startup", time.monotonic() + self._deadlines.startup
        self._stop = threading.Event()
        self._signals = stop_signals.StopSignals()

    def __enter__(self) -> "Supervisor":
        self._signals.__enter__()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._stop.set()
        self._signals.__exit__(kind, error, trace)
        if error is not None and jax.process_count() > 1:
            processes.die(error)

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
        return self._signals.asked()

    def stop_requested(self) -> bool:
        """Whether a run of one process was asked to; for work that may be cut short."""
        return self._signals.asked()

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
