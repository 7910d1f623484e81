"""What the processes of one run know of each other: signs of life, what they do, how they ended.

Each writes a counter, its phase and what its time went into to the coordinator's store, once a
second, from a thread. One that ends says so there, in a line. So the others leave with one line and
77 (a hang: 124, with the stacks of all) long before the library's own heartbeat would abort them.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from jax._src import distributed  # the store has no public door

from defi_jax import errors

HANG_CODE = 124

_BEAT_SECONDS = 1.0
_GRACE_SECONDS = 5.0  # for the main thread to find out itself, and to end with a code of its own
# Tracing and restoring can keep a process's other threads waiting.
_STARTUP_FACTOR = 5
_BEATS, _ENDS = "defi_jax/beat/", "defi_jax/end/"
# What the transports say when the other side is gone.
_RUNTIME_ERRORS = ("JaxRuntimeError", "XlaRuntimeError")
_CPU_TRANSPORT = "Gloo"  # its errors can come as ValueError, as those of buckets do
_GONE = ("closed by peer", "reset by peer", "Broken pipe", "refused", "UNAVAILABLE", "eartbeat")


class Peers:
    """The other processes, seen from this one.

    Args:
        index, count: this process's place among all.
        silent_after: seconds without a beat after which a process counts as lost.
        leave: ends this process with an error.

    Attributes:
        phase: what this process is doing, for the others to know.
        on_hang: called with a line when another process says that the run hangs.
        spent: returns what the time of this process went into, in seconds by kind.
    """

    def __init__(
        self, index: int, count: int, silent_after: float, leave: Callable[[Exception], Any]
    ):
        self._index, self._count = index, count
        self._silent_after, self._leave = silent_after, leave
        self._client: Any = distributed.global_state.client
        self._seen: dict[int, tuple[int, str, float]] = {}  # counter, phase, when it changed
        self._spent: dict[int, Mapping[str, float]] = {}
        self._stop = threading.Event()
        self.phase = "startup"
        self.on_hang: Callable[[str], Any] = lambda line: None
        self.spent: Callable[[], Mapping[str, float]] = dict
        self._lost = ""
        self._beaten = time.monotonic()
        for target in (self._watch, self._watch_coordinator):
            threading.Thread(target=target, name="peers", daemon=True).start()
        self._handler = _abort_handler(self._coordinator_is_gone)

    def stop(self) -> None:
        """Ends the watch: this process is done."""
        self._stop.set()
        self._say_end(0, "done")

    def announce(self, code: int, line: str) -> None:
        """Tells the others how this process ends; one that says nothing is missed by its beats."""
        self._stop.set()
        self._say_end(code, line)

    def leave_together(self, name: str) -> None:
        """Waits, not for long, until all are about to leave for the same reason."""
        self._stop.set()
        try:
            self._client.wait_at_barrier(name, int(_GRACE_SECONDS * 1000))
        except Exception:  # then each leaves on its own
            return
        if self._index == 0:  # the store is here: the others would miss it
            time.sleep(0.5)

    def phases(self) -> set[str]:
        """What the others are doing, as far as is known."""
        return {phase for _, phase, _ in self._seen.values()}

    def spent_by_all(self) -> dict[int, Mapping[str, float]]:
        """What the time of each process went into, as of its last beat."""
        return dict(self._spent)

    def explain(self, error: BaseException) -> errors.PeerLost | None:
        """The loss that an error of a collective comes from, or None: then it is this one's own."""
        if type(error).__name__ not in _RUNTIME_ERRORS and _CPU_TRANSPORT not in str(error):
            return None
        says_so = any(word in str(error) for word in _GONE)
        # Who it was is known a beat later.
        until = time.monotonic() + (2 * _BEAT_SECONDS if says_so else _GRACE_SECONDS)
        while not self._lost and time.monotonic() < until:
            time.sleep(0.1)
        if not self._lost and not says_so:
            return None
        return _peer_lost(
            self._lost or f"a process was lost ({' '.join(str(error).split())[-150:]})"
        )

    def _say_end(self, code: int, line: str) -> None:
        end = json.dumps([code, line[:500]])

        def say() -> None:
            with contextlib.suppress(Exception):  # the coordinator is gone: the others know
                self._client.key_value_set(f"{_ENDS}{self._index}", end, allow_overwrite=True)

        speaker = threading.Thread(target=say, daemon=True)
        speaker.start()
        speaker.join(2 * _BEAT_SECONDS)  # a coordinator that hangs answers never

    def _watch(self) -> None:
        count, started = 0, time.monotonic()
        while not self._stop.wait(_BEAT_SECONDS):
            count += 1
            spent = {kind: round(seconds, 2) for kind, seconds in self.spent().items()}
            beat = json.dumps([count, self.phase, spent])
            try:
                self._client.key_value_set(f"{_BEATS}{self._index}", beat, allow_overwrite=True)
                beats = self._client.key_value_dir_get(_BEATS)
                ends = self._client.key_value_dir_get(_ENDS)
            except Exception:
                self._leave_after_loss("process 0, the coordinator, was lost")
                return
            self._beaten = time.monotonic()
            ended = {int(key.rpartition("/")[2]): json.loads(value) for key, value in ends}
            for index, (code, line) in sorted(ended.items()):
                if code and index != self._index:
                    self._leave_after_loss(f"process {index} ended with {code} ({line})", code)
                    return
            silent = self._silent(dict(beats), {*ended}, started)
            if silent is not None:
                seconds = f"{self._silent_after:.0f} s"
                self._leave_after_loss(f"process {silent} gave no sign of life for {seconds}")
                return

    def _watch_coordinator(self) -> None:
        """Notices that beats, which wait for the coordinator, hang."""
        while not self._stop.wait(_BEAT_SECONDS):
            now = time.monotonic()
            factor = _STARTUP_FACTOR if self.phase == "startup" else 1
            if now - self._beaten > self._silent_after * factor:
                seconds = f"{self._silent_after * factor:.0f} s"
                self._leave_after_loss(f"process 0 gave no sign of life for {seconds}")
                return

    def _silent(self, beats: dict[str, str], ended: set[int], started: float) -> int | None:
        now = time.monotonic()
        for index in range(self._count):
            key = f"{_BEATS}{index}"
            if key in beats:
                counter, phase, self._spent[index] = json.loads(beats[key])
                if self._seen.get(index, (-1, "", 0.0))[0] != counter:
                    self._seen[index] = (counter, phase, now)
            _, phase, changed = self._seen.get(index, (0, "startup", started))
            factor = _STARTUP_FACTOR if phase == "startup" else 1
            others = index != self._index and index not in ended
            if others and now - changed > self._silent_after * factor:
                return index
        return None

    def _leave_after_loss(self, what: str, code: int = 0) -> None:
        if code == HANG_CODE:
            self.on_hang(what)
        self._lost = what
        if not self._stop.wait(_GRACE_SECONDS):
            self._leave(_peer_lost(what))

    def _coordinator_is_gone(self) -> bool:
        if self._lost or time.monotonic() - self._beaten > 4 * _BEAT_SECONDS:
            return True
        address = str(distributed.global_state.coordinator_address)
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError:
            return self._index != 0
        return False


def _peer_lost(what: str) -> errors.PeerLost:
    return errors.PeerLost(what, "the processes of this run", "start them all again")


def _abort_handler(is_peers: Callable[[], bool]) -> Any:
    """Ends this process with 77 where the library aborts it because the coordinator is gone.

    That comes from a thread without Python, within a moment, and cannot be caught otherwise: its
    own callback cannot be a Python function (std::bad_cast in jaxlib 0.10.2).
    """

    def on_abort(number: int) -> None:
        del number
        if is_peers():
            text = f"error: {_peer_lost('the coordinator or another process was lost')}\n"
            os.write(2, text.encode())
            os._exit(errors.PeerLost.exit_code)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
    return handler  # to be kept
