"""Several processes of one command on this machine, as if each were a host of its own.

For CPUs: to see on a laptop what a run on many hosts does. They talk over loopback.
"""

import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from defi_jax import errors

# Those that ended for a reason of their own are the others' reason to leave (77), or to save (75).
_NO_REASON = (0, errors.Preempted.exit_code, errors.PeerLost.exit_code)
_GRACE_SECONDS = 30.0  # for the others to notice that one has failed
_SHORT_GRACE_SECONDS = 10.0  # once one has noticed: those that are left hang
_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def run(
    command: Sequence[str],
    count: int,
    environ: Mapping[str, str] = os.environ,
    grace_seconds: float = _GRACE_SECONDS,
) -> int:
    """Runs `count` processes of a command until all have ended; call it in the main thread.

    What they print goes to stderr, each line behind the process's number. SIGINT, SIGTERM and
    SIGHUP are passed on to each, once. Where one fails, the others have `grace_seconds` to leave,
    and less once one of them says that it has lost a peer.

    Returns:
        The exit code of all: that of the first that failed by itself (128 and the number of a
        signal), else 77, 75 or 0.

    Raises:
        UserError: `environ` names a place among processes, or devices that are no CPUs or cannot be
            shared evenly.
    """
    started, printers = [], []
    with _passed_on(started):
        for index, variables in enumerate(environments(count, environ)):
            process = subprocess.Popen(
                command,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # a terminal's Ctrl-C would arrive twice
            )
            started.append(process)
            printer = threading.Thread(target=_print, args=(index, process.stdout), daemon=True)
            printer.start()
            printers.append(printer)
        codes = _wait(started, grace_seconds)
    for printer in printers:  # what they said last; workers of theirs may keep the pipe open
        printer.join(timeout=5)
    worst = worst_code(codes)
    if worst:
        logging.error("the processes ended, in this order, with %s", ", ".join(map(str, codes)))
    return worst


def worst_code(codes: Sequence[int]) -> int:
    """Returns the exit code of processes that ended in this order with these codes."""
    own = [code for code in codes if code not in _NO_REASON]
    return own[0] if own else max(codes, default=0)


def environments(count: int, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """Returns the environment of each process, with its place and its share of the devices.

    Raises:
        UserError: as `run`.
    """
    flag = f"--num_processes={count}"
    if count < 1:
        raise errors.UserError(f"{count} processes", "--num_processes", "give 1 or more")
    for name in ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES", "JAX_COORDINATOR_ADDRESS"):
        if name in environ:
            raise errors.UserError(
                f"this process is one of several already ({name})", flag, "leave one of the two out"
            )
    platforms = environ.get("JAX_PLATFORMS", "cpu")
    if platforms != "cpu":
        raise errors.UserError(
            f"JAX_PLATFORMS={platforms}", flag, "one process has all GPUs of a host; leave it out"
        )
    given = _DEVICES.search(environ.get("XLA_FLAGS", ""))
    devices = int(given[1]) if given else count
    if devices % count:
        raise errors.UserError(
            f"{devices} devices in XLA_FLAGS", flag, f"give a multiple of {count}"
        )
    share = f"--xla_force_host_platform_device_count={devices // count}"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    common = {
        **environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{_DEVICES.sub('', environ.get('XLA_FLAGS', '')).strip()} {share}".strip(),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "PYTHONUNBUFFERED": "1",
    }
    logging.info("%d processes with %d CPU devices each", count, devices // count)
    return [{**common, "JAX_PROCESS_ID": str(index)} for index in range(count)]


@contextlib.contextmanager
def _passed_on(started: list[subprocess.Popen]) -> Any:
    """Passes requests to stop on to all that have been started, and lives on itself."""

    def pass_on(number: int, frame: Any) -> None:
        del frame
        for process in started:
            process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for process in started:
            process.kill()  # those that are left after an error of ours
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(started: list[subprocess.Popen], grace_seconds: float) -> list[int]:
    """Returns the exit codes in the order of the ends, without those that had to be killed."""
    running, codes, deadline = dict(enumerate(started)), [], float("inf")
    while running and time.monotonic() < deadline:
        time.sleep(0.1)
        for index, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[index]
            code = process.returncode
            codes.append(code if code >= 0 else 128 - code)
            if codes[-1] not in (0, errors.Preempted.exit_code):
                has_noticed = codes[-1] == errors.PeerLost.exit_code
                grace = min(grace_seconds, _SHORT_GRACE_SECONDS) if has_noticed else grace_seconds
                deadline = min(deadline, time.monotonic() + grace)
    for index, process in running.items():
        logging.error("process %d did not leave: killed", index)
        process.kill()
        process.wait()
    return codes


def _print(index: int, lines: Any) -> None:
    for line in lines:
        with contextlib.suppress(OSError):  # the terminal may be gone
            sys.stderr.write(f"[{index}] {line.rstrip()}\n")
