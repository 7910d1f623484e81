"""What keeps a run from hanging or dying silently: signals and the watchdog.

A signal asks for a save and exit code 75 (stop_signals.py). A phase that outlives its deadline ends
the process with exit code 124 and the stacks of all threads.
"""

import collections
import contextlib
import dataclasses
import faulthandler
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from defi_jax import peers, processes
from defi_jax.training import ledger, stop_signals

WATCHDOG_EXIT_CODE = peers.HANG_CODE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds a phase may take before the watchdog ends the process.

    A step and its data have `step` until some were measured, then ten times the slowest of those,
    but no less than `least_step`.
    """

    startup: float = 7200.0
    step: float = 900.0
    least_step: float = 30.0
    eval: float = 7200.0
    save: float = 3600.0


_MEASURED_STEPS = 5  # the first ones wait for what is made once
_SLOWEST_FACTOR = 10
_STEP_PHASES = ("step", "data")
# As what a phase's time counts.
_KINDS = {
    "startup": "startup",
    "step": "device",
    "data": "device",
    "eval": "evaluation",
    "save": "checkpoint",
}
_STOPPED_SECONDS = 5.0  # later than due by so much: the process itself was stopped (Ctrl-Z)


class Supervisor:
    """Watches one training process; use as a context manager around the run.

    `log_dir` is a directory for `hang_<process>.txt`, used if it is local: a bucket may be what
    hangs. `ledger` says what time went into.
    """

    def __init__(self, log_dir: str, deadlines: Deadlines | None = None):
        self._log_dir = None if "://" in log_dir else pathlib.Path(log_dir)
        self._deadlines = deadlines or Deadlines()
        self._lock = threading.Lock()
        self._phase, self._since = "startup", time.monotonic()
        self._step_since, self._away = 0.0, 0.0  # when it began; spent in other phases since
        self._steps: collections.deque[float] = collections.deque(maxlen=_MEASURED_STEPS)
        self._slowest = 0.0
        self._stop = threading.Event()
        self._signals = stop_signals.StopSignals()
        self.ledger = ledger.Ledger()
        self._profile_asked, self._signal_before = threading.Event(), None

    def __enter__(self) -> "Supervisor":
        self._signals.__enter__()
        if threading.current_thread() is threading.main_thread():
            ask = self._profile_asked.set
            self._signal_before = signal.signal(signal.SIGUSR1, lambda number, frame: ask())
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._stop.set()
        self._signals.__exit__(kind, error, trace)
        if self._signal_before is not None:
            signal.signal(signal.SIGUSR1, self._signal_before)
        if error is not None and jax.process_count() > 1:
            processes.die(error)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Runs a block under the deadline of `name`; "startup" or "step" follows it again."""
        before, start = self._phase, time.monotonic()
        self._begin(name)
        try:
            yield
        finally:
            if name not in _STEP_PHASES:
                self._away += time.monotonic() - start
            self._begin(before)

    def enter(self, name: str) -> None:
        """Starts the deadline of a phase anew; also the sign of life within a long one."""
        if name == "step":
            now = time.monotonic()
            if self._phase == "step":
                self._steps.append(now - self._step_since - self._away)
                self._slowest = max(self._slowest, self._steps[-1])
            self._step_since, self._away = now, 0.0
        self._begin(name)

    def deadline(self, phase: str) -> float:
        """Seconds that a phase may take now."""
        if phase not in _STEP_PHASES:
            return getattr(self._deadlines, phase)
        if len(self._steps) < _MEASURED_STEPS:
            return self._deadlines.step
        return max(self._deadlines.least_step, _SLOWEST_FACTOR * self._slowest)

    def _begin(self, phase: str) -> None:
        with self._lock:
            self._phase, self._since = phase, time.monotonic()
        self.ledger.enter(_KINDS[phase])
        others = processes.others()
        if others is not None:
            others.phase = phase

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

    def profile_asked(self) -> bool:
        """Whether SIGUSR1 came since the last time that this was asked."""
        asked = self._profile_asked.is_set()
        self._profile_asked.clear()
        return asked

    def _watch(self) -> None:
        others = processes.others()
        if others is not None:
            others.on_hang = self._leave_hung
            others.spent = self.ledger.seconds
        every = min(1.0, self._deadlines.step / 4)
        looked = time.monotonic()
        while not self._stop.wait(every):
            now = time.monotonic()
            with self._lock:
                if now - looked > every + _STOPPED_SECONDS:
                    self._since += now - looked
                phase, took = self._phase, now - self._since
            looked = now
            # One process waits in its step for another that saves or evaluates.
            phases = {phase} | (others.phases() if others is not None else set())
            seconds = max(self.deadline(phase) for phase in phases)
            if took > seconds:
                text = f"no progress: phase '{phase}' took more than {seconds:.0f} s"
                if others is not None:
                    others.announce(WATCHDOG_EXIT_CODE, text)
                self._leave_hung(text)

    def _leave_hung(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal or the disk may be gone
            also = f" and are in {self._log_dir}" if self._log_dir else ""
            where = f"stacks of all threads follow{also}"
            print(f"error: {text}; {where}", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            if self._log_dir:
                self._log_dir.mkdir(parents=True, exist_ok=True)
                with (self._log_dir / f"hang_{jax.process_index()}.txt").open("w") as file:
                    faulthandler.dump_traceback(file=file, all_threads=True)
        os._exit(WATCHDOG_EXIT_CODE)
