"""Worker processes that play episodes, each with its own simulator and share of the cores.

A worker is a process of the simulator's own Python (`simulators`); all ask the same policy server.
The parent hands out one episode at a time (messages: see `player`). A worker that dies or hangs
costs that episode one attempt; a second death makes a row of status "crashed".
"""

import collections
import dataclasses
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import subprocess
import time
from collections.abc import Generator, Sequence
from typing import Any

from defi_rollout import errors
from defi_rollout.benchmarks import base, child_errors, player, simulators

MAX_ATTEMPTS = 2
START_SECONDS = 300.0  # the worker's start, and besides a step that of the simulator
_POLL_SECONDS = 1.0

Row = dict[str, Any]


def play_all(
    job: player.Job,
    simulator: simulators.Simulator,
    episodes: Sequence[base.Episode],
    num_workers: int,
) -> Generator[Row]:
    """Plays all `episodes`; yields their rows in the order in which they end.

    Raises:
        UserError: a worker met an expected error, such as a lost policy server.
        CheckFailed: workers die before they play anything.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    queue = collections.deque((episode, 1) for episode in episodes)
    num_workers = max(1, min(num_workers, len(episodes)))
    pool = [_Worker(job, simulator, _share(cores, i, num_workers)) for i in range(num_workers)]
    remaining = len(episodes)
    try:
        while remaining:
            multiprocessing.connection.wait([w.connection for w in pool], _POLL_SECONDS)
            for worker in pool:
                row = worker.advance(queue)
                if row is not None:
                    remaining -= 1
                    yield row
    finally:
        for worker in pool:
            worker.stop()


def _share(cores: Sequence[int], index: int, num_workers: int) -> tuple[int, ...]:
    """Cores of worker `index`: equal disjoint shares, or one each in turn when cores are few."""
    if not cores:
        return ()
    if len(cores) < num_workers:
        return (cores[index % len(cores)],)
    return tuple(cores[index::num_workers])


class _Worker:
    """The parent's view of one process."""

    def __init__(self, job: player.Job, simulator: simulators.Simulator, cores: tuple[int, ...]):
        self._job, self._simulator, self._cores = job, simulator, cores
        self._failed_starts = 0
        self._start()

    def advance(self, queue: collections.deque) -> Row | None:
        """Reads at most one message and hands out the next episode; a row when one is complete."""
        try:
            message = json.loads(self.connection.recv_bytes()) if self.connection.poll() else None
        except (EOFError, ConnectionError):
            return self._bury(queue, "the worker process died")
        if message is None:
            if time.monotonic() < self._deadline:
                return None
            return self._bury(queue, "the worker process hung")
        row = None
        if message["kind"] == "fatal":
            raise child_errors.decode(message["error"])
        if message["kind"] == "alive":
            self._deadline = time.monotonic() + self._job.step_seconds
            return None
        if message["kind"] == "ready":
            self._is_ready = True
        elif message["kind"] == "row":
            _, attempt = self._current()
            row = message["row"] | {"status": "ok" if attempt == 1 else "retried", "error": None}
        else:
            row = self._give_back(queue, "failed", message["text"])
        self._assign(queue)
        return row

    def stop(self) -> None:
        """Ends the process: politely when idle, at once when it plays."""
        if self._task is not None or not self._is_ready:
            self._process.kill()
        else:
            self._send(None)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.connection.close()

    def _start(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        cores, number = self._cores, theirs.fileno()
        threads = str(max(len(cores), 1))
        self._process = simulators.start_child(
            self._simulator,
            "defi_rollout.benchmarks.player",
            [str(number)],
            pass_fds=[number],
            env={"OMP_NUM_THREADS": threads, "LP_NUM_THREADS": threads},
        )
        theirs.close()  # so that the worker's death closes the pipe
        if cores:
            os.sched_setaffinity(self._process.pid, cores)
        self._task: tuple[base.Episode, int] | None = None
        self._is_ready = False
        self._deadline = time.monotonic() + START_SECONDS
        self._send(dataclasses.asdict(self._job))

    def _assign(self, queue: collections.deque) -> None:
        self._task = queue.popleft() if queue else None
        self._deadline = float("inf")
        if self._task is not None:
            self._deadline = time.monotonic() + START_SECONDS + self._job.step_seconds
            self._send(dataclasses.asdict(self._task[0]))

    def _send(self, message: Any) -> None:
        try:
            self.connection.send_bytes(json.dumps(message).encode())
        except ConnectionError:
            logging.info("a worker died between two episodes")  # the next poll buries it

    def _bury(self, queue: collections.deque, reason: str) -> Row | None:
        """Replaces the process; its episode is tried again or becomes a row."""
        self._process.kill()
        self._process.wait()
        self.connection.close()
        row = None
        if self._task is not None:
            row = self._give_back(queue, "crashed", reason)
        elif not self._is_ready:
            self._failed_starts += 1
        if self._failed_starts >= MAX_ATTEMPTS:
            raise errors.CheckFailed(
                f"{reason} before its first episode",
                self._job.benchmark,
                f"python -m defi_rollout doctor --benchmark={self._job.benchmark}",
            )
        self._start()
        return row

    def _give_back(self, queue: collections.deque, status: str, reason: str) -> Row | None:
        episode, attempt = self._current()
        logging.warning("%s: %s (attempt %d)", episode.id, reason.splitlines()[-1], attempt)
        if attempt < MAX_ATTEMPTS:
            queue.appendleft((episode, attempt + 1))
            return None
        # What could not be played counts as not solved.
        return episode.row() | {"status": status, "error": reason}

    def _current(self) -> tuple[base.Episode, int]:
        if self._task is None:
            raise RuntimeError("a worker answered without an episode")
        return self._task
