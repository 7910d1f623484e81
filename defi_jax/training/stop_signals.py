"""Requests to stop: SIGTERM, SIGINT (Ctrl-C) and SIGHUP (a lost terminal).

The first asks for a save and exit code 75; the second leaves at once, with 128 and its number. A
thread of its own hears the second, also while the main one is deep in a compiler.
"""

import logging
import os
import signal
import sys
import threading
import time
from typing import Any

import jax

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A shell and a terminal, or `timeout`, may send the same signal twice for one request.
_ONE_REQUEST_SECONDS = 0.3


class StopSignals:
    """Hears requests to stop; use as a context manager, in the main thread (else it hears none)."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._before: dict[int, Any] = {}
        self._wakeup_before, self._pipe = -1, (-1, -1)

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._alone = jax.process_count() == 1
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in _SIGNALS:
            # With jax.distributed its own handler must stay the only one of SIGTERM (reliability.md
            # 0.7); what nohup or a script's `&` ignores stays ignored.
            is_jaxs = number == signal.SIGTERM and not self._alone
            if not is_jaxs and signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        threading.Thread(target=self._hear, name="stop-signals", daemon=True).start()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._pipe[1] >= 0:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._pipe[1])  # ends the thread

    def asked(self) -> bool:
        """Whether this process, which is the run's only one, was asked to stop."""
        return self._asked.is_set()

    def _note(self, number: int, frame: Any) -> None:
        del number, frame
        if self._alone:
            self._asked.set()

    def _hear(self) -> None:
        first = None
        while heard := os.read(self._pipe[0], 1):
            name, now = signal.Signals(heard[0]).name, time.monotonic()
            if heard[0] not in self._before:
                continue
            if first is None:
                first = now
                logging.warning("%s: saving, then leaving; once more to leave at once", name)
                if not self._alone:  # jax tells the others, and all save the same step
                    os.kill(os.getpid(), signal.SIGTERM)
            elif now - first > _ONE_REQUEST_SECONDS:
                logging.error("%s again: leaving at once", name)
                sys.stderr.flush()
                os._exit(128 + heard[0])
        os.close(self._pipe[0])
