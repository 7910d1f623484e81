"""Where the wall time of a run goes: every second counts once, as one kind.

Time of the main thread; the devices work beside it, one step behind. `device` is what is left of
the steps: the host waits for the devices, or does something while they have a step to do.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping

STEP_KINDS = ("data_wait", "dispatch", "device")
KINDS = ("startup", "compile", *STEP_KINDS, "checkpoint", "evaluation")


class Ledger:
    """Seconds of one process by kind, from its making on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # other threads read
        self._seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._kind, self._since = "startup", time.monotonic()

    def enter(self, kind: str) -> str:
        """Counts as `kind` from now on; returns what was counted until now."""
        with self._lock:
            now = time.monotonic()
            self._seconds[self._kind] += now - self._since
            before, self._kind, self._since = self._kind, kind, now
        return before

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Counts a block as `kind`."""
        before = self.enter(kind)
        try:
            yield
        finally:
            self.enter(before)

    def move(self, seconds: float, source: str, target: str) -> None:
        """Counts seconds as another kind: what they were is known only afterwards."""
        with self._lock:
            self._seconds[source] -= seconds
            self._seconds[target] += seconds

    def seconds(self) -> dict[str, float]:
        """Seconds by kind until now."""
        with self._lock:
            running = time.monotonic() - self._since
            return self._seconds | {self._kind: self._seconds[self._kind] + running}


def since(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """What was added by kind between two readings."""
    return {kind: seconds - before.get(kind, 0.0) for kind, seconds in now.items()}
