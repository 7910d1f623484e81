"""One run at a time in a workdir: a lock that beats, on disk and in a bucket alike.

`<workdir>/run.lock` says who runs there. A run whose process is gone, or whose beats have stopped
for STALE_SECONDS, is succeeded by the next; one that finds another's name in its lock ends at once.
The processes of one job share one lock, which the first of them holds. As the beats are writes,
they also show when the storage has gone.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
from etils import epath

from defi_jax import errors, processes
from defi_jax.checkpoints import storage

FILE = "run.lock"
BEAT_SECONDS = 10.0
# Twelve beats: longer than a slow minute of a bucket, shorter than a restart on another machine.
STALE_SECONDS = 120.0
SETTLE_SECONDS = 1.0  # between taking over and looking whether another did the same

_RETRY_SECONDS = 0.05  # after another made the lock first, or an answer was lost
_STOPPED_SECONDS = 5.0  # without a look each second: the process was stopped, not the storage
_REACH_SECONDS = 15.0  # the libraries of buckets alone would try for a minute

# Records are of one length: a beat then needs no new space on a full disk.
_RECORD_BYTES = 512
_CLOCK_SECONDS = 10.0  # how far two readings of a process's start may be apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a lock; times are in seconds since 1970.

    Attributes:
        token: of one run, random.
        host, pid: for a human.
        machine: within which `pid` means something: the host and its process namespace.
        started: start of the run's process.
        beat: last sign of life.
    """

    token: str
    host: str
    pid: int
    machine: str
    started: float
    beat: float

    def __str__(self) -> str:
        beat = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.beat))
        started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.started))
        return f"process {self.pid} on {self.host}, started {started}, last beat {beat}"


class WorkdirLock:
    """Holds a workdir for one run; use as a context manager.

    Args:
        workdir: made if need be, and removed again if the run leaves nothing there.
        patience: seconds without a beat that could be written, after which the storage counts as
            gone and the process ends.

    Attributes:
        last_good: says from where the run can go on, for the message of that end.

    Raises:
        UserError: another run holds the workdir, or it can't be written.
        StorageError: the disk is full; when left, for an error of the bucket that nobody caught.
    """

    def __init__(self, workdir: epath.Path, *, patience: float = 600.0):
        self._workdir, self._path, self._patience = workdir, workdir / FILE, patience
        self._is_local = "://" not in os.fspath(workdir)
        self._me = _myself()
        self._made = False
        self._stop = threading.Event()
        self._written = time.monotonic()
        self._beating = threading.Thread(
            target=self._beat_forever, name="workdir-beat", daemon=True
        )
        self.last_good: Callable[[], str] = lambda: "no step was saved"

    def __enter__(self) -> "WorkdirLock":
        if processes.is_primary():
            with _instead_of_storage_errors(self._workdir):
                self._made = self._is_local and not self._workdir.exists()
                if self._is_local:
                    self._workdir.mkdir(parents=True, exist_ok=True)
                self._acquire()
            self._written = time.monotonic()
            self._beating.start()
            threading.Thread(target=self._watch_storage, name="workdir-lock", daemon=True).start()
        processes.barrier("the workdir is held")
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._stop.set()
        if processes.is_primary():
            self._release()
        if self._is_local or error is None or isinstance(error, errors.UserError):
            return
        if storage.has_failed(error):
            raise storage.failure(self._workdir, error, self.last_good()) from error

    def _release(self) -> None:
        self._beating.join(_REACH_SECONDS)  # a beat in a bucket would bring the lock back
        try:
            owner = self._read()
            if owner is not None and owner.token == self._me.token:
                self._path.unlink()
            if self._made and not any(self._workdir.iterdir()):
                self._workdir.rmdir()
        except Exception as error:  # a bucket's library has no common type
            logging.warning("%s: the lock stays: %s", self._path, error)

    def check(self) -> None:
        """Ends the process if another run has taken the workdir over; for the moment of a save."""
        if not processes.is_primary():
            return
        try:
            owner = self._read()
        except Exception as error:  # what can't be read now is found by the beats, or by the save
            logging.warning("%s cannot be read: %s", self._path, error)
            return
        if owner is None or owner.token != self._me.token:
            self._die_of(owner)

    def _acquire(self) -> None:
        while True:
            owner = self._read()
            if owner is not None and owner.token == self._me.token:
                return
            if owner is None:
                with contextlib.suppress(FileExistsError):
                    self._create()
                    return
                time.sleep(_RETRY_SECONDS)
                continue
            if not self._is_dead(owner):
                raise errors.UserError(
                    f"another run is in the workdir ({owner})",
                    str(self._workdir),
                    "wait for it, stop it, or name another --workdir; a run without a beat for "
                    f"{STALE_SECONDS:.0f} s is succeeded",
                )
            logging.warning("%s: taken over from a run that is gone: %s", self._path, owner)
            self._write()
            time.sleep(SETTLE_SECONDS)  # of several that write at once the last one holds it

    def _is_dead(self, owner: Owner) -> bool:
        if owner.machine == self._me.machine and not _is_running(owner):
            return True
        if abs(time.time() - owner.beat) < STALE_SECONDS:
            return False
        # Clocks of two machines may disagree: what counts is whether it beats.
        logging.info("%s: waiting for a sign of life of %s", self._path, owner)
        time.sleep(2.5 * BEAT_SECONDS)
        return self._read() == owner

    def _beat_forever(self) -> None:
        missed = 0
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._beat()
            except Exception as error:  # a bucket's library has no common type
                missed += 1
                if missed == 1:
                    text = " ".join(str(error).split())[:200]
                    logging.warning("%s: no beat, trying on: %s", self._path, text)
            else:
                self._written, missed = time.monotonic(), 0

    def _beat(self) -> None:
        owner = self._read()
        if self._stop.is_set():
            return
        if owner is None or owner.token != self._me.token:
            self._die_of(owner)
        self._write()

    def _watch_storage(self) -> None:
        """Ends the process when no beat could be written for long; a beat may hang itself."""
        before = time.monotonic()
        while not self._stop.wait(1.0):
            now = time.monotonic()
            if now - before > _STOPPED_SECONDS:
                self._written = now
            before = now
            if now - self._written > self._patience:
                processes.die(
                    errors.StorageError(
                        f"the workdir could not be written for {self._patience:.0f} s; "
                        f"{self.last_good()}",
                        str(self._workdir),
                        "when it can be reached again, the same command goes on from there",
                    )
                )

    def _die_of(self, owner: Owner | None) -> None:
        """Leaves at once, so that not a byte more is written."""
        what = f"another run has taken over the workdir ({owner})" if owner else "the lock is gone"
        processes.die(
            errors.UserError(
                what,
                str(self._path),
                "nothing more is written here; this run had stopped beating, or somebody removed "
                "its lock",
            )
        )

    def _read(self) -> Owner | None:
        return owner(self._workdir)

    def _create(self) -> None:
        """Raises FileExistsError where there is a lock already: of several runs one succeeds."""
        if self._is_local:
            with open(self._path, "x") as file:
                file.write(_record(self._me))
            return
        import fsspec.core

        bucket, path = fsspec.core.url_to_fs(os.fspath(self._path))
        bucket.pipe_file(path, _record(self._me).encode(), mode="create")

    def _write(self) -> None:
        record = _record(dataclasses.replace(self._me, beat=time.time()))
        if not self._is_local:
            self._path.write_text(record)
            return
        with open(self._path, "r+") as file:  # in place
            file.write(record)


def owner(workdir: epath.Path) -> Owner | None:
    """Who holds the lock: None if nobody, the eldest of all if what stands there is torn."""
    try:
        text = (workdir / FILE).read_text()
    except FileNotFoundError:
        return None
    try:
        return Owner(**json.loads(text))
    except (ValueError, TypeError):
        return Owner(token=text, host="unknown", pid=0, machine="", started=0.0, beat=0.0)


def reach(workdir: epath.Path) -> None:
    """Raises UserError, within seconds, where the workdir's storage does not answer."""
    logging.getLogger("fsspec").setLevel(logging.WARNING)  # it has a line for each file
    outcome: list[Exception | None] = []

    def touch() -> None:
        try:
            workdir.exists()
        except Exception as error:  # raised below
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    thread.join(_REACH_SECONDS)
    with _instead_of_storage_errors(workdir):
        if not outcome:
            raise TimeoutError(f"no answer within {_REACH_SECONDS:.0f} s")
        if outcome[0]:
            raise outcome[0]


@contextlib.contextmanager
def _instead_of_storage_errors(workdir: epath.Path) -> Iterator[None]:
    """Raises a UserError or StorageError of one line for whatever keeps a workdir from use."""
    try:
        yield
    except errors.UserError:
        raise
    except ImportError as error:
        fix = "pip install 'defi-jax[gcs]'"
        raise errors.UserError("a bucket needs gcsfs", str(workdir), fix) from error
    except Exception as error:  # a bucket's library has no common type
        text = " ".join((getattr(error, "strerror", None) or str(error) or repr(error)).split())
        if isinstance(error, FileNotFoundError) and "://" in str(workdir):
            text = "no such bucket"
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            fix = "free some, or name another --workdir"
            raise errors.StorageError(f"no space in the workdir ({text})", workdir, fix) from error
        raise errors.UserError(
            f"the workdir cannot be used ({text[:200]})",
            str(workdir),
            "check its name, its permissions and, for a bucket, your credentials",
        ) from error


def _record(owner: Owner) -> str:
    return json.dumps(dataclasses.asdict(owner)).ljust(_RECORD_BYTES)


def _myself() -> Owner:
    host, namespace = socket.gethostname(), pathlib.Path("/proc/self/ns/pid")
    return Owner(
        token=secrets.token_hex(8),
        host=host,
        pid=os.getpid(),
        machine=f"{host} {os.readlink(namespace) if namespace.exists() else ''}",
        started=psutil.Process().create_time(),
        beat=time.time(),
    )


def _is_running(owner: Owner) -> bool:
    """Whether the owner's process, and not another of its number, runs on this machine."""
    try:
        process = psutil.Process(owner.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(process.create_time() - owner.started) < _CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return False
