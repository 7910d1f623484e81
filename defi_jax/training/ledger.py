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
GOOD_KINDS = ("dispatch", "device")
# Of a run that was restarted: steps that had to be done again; time between its processes, which
# includes what the last one did after its last line.
BETWEEN = ("lost", "away")


class Ledger:
    """Seconds of one process by kind, from its making on, `began`, in seconds since 1970."""

    def __init__(self) -> None:
        self.began = time.time()
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


def carried(last: Mapping[str, float], kept: Mapping[str, float], began: float) -> dict[str, float]:
    """Seconds of a run by kind before the process that goes on with it.

    Args:
        last: last line of the run's ledger, as `line` makes it, with its `time`; {} for none.
        kept: last such line of the steps that the run goes on from.
        began: when the process began, seconds since 1970.
    """
    if not last:
        return {}
    before = {kind: last[f"seconds/{kind}"] for kind in (*KINDS, *BETWEEN)}
    for kind in STEP_KINDS:
        lost = before[kind] - kept.get(f"seconds/{kind}", 0.0)
        before[kind] -= lost
        before["lost"] += lost
    before["away"] += max(0.0, began - last["time"])
    return before


def line(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """What is reported of a whole run: seconds by kind, and the share of steps that count."""
    total = {k: before.get(k, 0.0) + now.get(k, 0.0) for k in (*KINDS, *BETWEEN)}
    good = sum(total[kind] for kind in GOOD_KINDS)
    return {
        "goodput": good / max(sum(total.values()), 1e-9),
        **{f"seconds/{kind}": seconds for kind, seconds in total.items()},
    }
