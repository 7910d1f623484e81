"""Worker processes that play episodes, each with its own simulator, policy and share of the cores.

The parent hands out one episode at a time. A worker that dies or hangs costs that episode one
attempt; a second death makes a row of status "crashed". Nothing is shared but the messages:

    worker -> parent   ("ready", None), ("row", row), ("error", text), ("fatal", UserError)
    parent -> worker   Episode, or None to end
"""

import collections
import dataclasses
import logging
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from defi_rollout import bundle, errors
from defi_rollout.benchmarks import base

MAX_ATTEMPTS = 2
START_SECONDS = 1800.0  # loading and compiling the largest policy
EPISODE_SECONDS = 900.0  # one episode, its simulator's start included
_POLL_SECONDS = 1.0

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker needs, besides its episodes; `output` is the results' directory."""

    bundle_path: pathlib.Path
    benchmark: base.Benchmark
    execute_horizon: int
    output: pathlib.Path


def play_all(job: Job, episodes: Sequence[base.Episode], num_workers: int) -> Iterator[Row]:
    """Plays all `episodes`; yields their rows in the order in which they end.

    Raises:
        UserError: a worker met an expected error, such as a damaged bundle.
        CheckFailed: workers die before they play anything.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    queue = collections.deque((episode, 1) for episode in episodes)
    num_workers = max(1, min(num_workers, len(episodes)))
    pool = [_Worker(job, _share(cores, i, num_workers)) for i in range(num_workers)]
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

    def __init__(self, job: Job, cores: tuple[int, ...]):
        self._job, self._cores = job, cores
        self._failed_starts = 0
        self._start()

    def advance(self, queue: collections.deque) -> Row | None:
        """Reads at most one message and hands out the next episode; a row when one is complete."""
        try:
            message = self.connection.recv() if self.connection.poll() else None
        except (EOFError, ConnectionError):
            return self._bury(queue, "the worker process died")
        if message is None:
            if time.monotonic() < self._deadline:
                return None
            return self._bury(queue, "the worker process hung")
        kind, content = message
        if kind == "fatal":
            raise content
        row = None
        if kind == "ready":
            self._is_ready = True
        elif kind == "row":
            _, attempt = self._current()
            row = content | {"status": "ok" if attempt == 1 else "retried", "error": None}
        else:
            row = self._give_back(queue, "failed", content)
        self._assign(queue)
        return row

    def stop(self) -> None:
        """Ends the process: politely when idle, at once when it plays."""
        if self._task is not None or not self._is_ready:
            self._process.kill()
        else:
            self._send(None)
        self._process.join(10)
        self._process.kill()
        self.connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self._job, self._cores)
        self._process = context.Process(target=_run_worker, args=arguments, daemon=True)
        self._process.start()
        theirs.close()  # so that the worker's death closes the pipe
        self._task: tuple[base.Episode, int] | None = None
        self._is_ready = False
        self._deadline = time.monotonic() + START_SECONDS

    def _assign(self, queue: collections.deque) -> None:
        self._task = queue.popleft() if queue else None
        self._deadline = float("inf")
        if self._task is not None:
            self._deadline = time.monotonic() + EPISODE_SECONDS
            self._send(self._task[0])

    def _send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except ConnectionError:
            logging.info("a worker died between two episodes")  # the next poll buries it

    def _bury(self, queue: collections.deque, reason: str) -> Row | None:
        """Replaces the process; its episode is tried again or becomes a row."""
        self._process.kill()
        self._process.join()
        self.connection.close()
        row = None
        if self._task is not None:
            row = self._give_back(queue, "crashed", reason)
        elif not self._is_ready:
            self._failed_starts += 1
        if self._failed_starts >= MAX_ATTEMPTS:
            raise errors.CheckFailed(
                f"{reason} before its first episode",
                f"bundle {self._job.bundle_path}",
                "run `python -m defi_rollout doctor` and see the messages above",
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


def _run_worker(
    connection: multiprocessing.connection.Connection, job: Job, cores: Collection[int]
) -> None:
    """Body of a worker process."""
    _limit_cores(cores)
    try:
        _serve(connection, job)
    except errors.UserError as error:
        connection.send(("fatal", error))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return  # the parent is gone


def _limit_cores(cores: Collection[int]) -> None:
    """Before jax loads: XLA sizes its thread pool by the cores that it may use."""
    if cores:
        os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = os.environ["LP_NUM_THREADS"] = str(max(len(cores), 1))
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def _serve(connection: multiprocessing.connection.Connection, job: Job) -> None:
    from defi_rollout import policy as policy_lib
    from defi_rollout.benchmarks import play

    source = bundle.read_bundle(job.bundle_path)
    policy = policy_lib.Policy.load(job.bundle_path)
    training_starts = frozenset(source.spec.training_starts)
    connection.send(("ready", None))
    environment, loaded = None, None
    while (episode := connection.recv()) is not None:
        try:
            if environment is None or loaded != episode.task:
                if environment is not None:
                    environment.close()
                environment = job.benchmark.make_environment(episode.task, source.spec)
                loaded = episode.task
            row = play.play(
                episode,
                actor=policy,
                environment=environment,
                benchmark=job.benchmark,
                execute_horizon=job.execute_horizon,
                training_starts=training_starts,
                output=job.output,
            )
            connection.send(("row", row | {"renderer": environment.renderer()}))
        except (errors.UserError, EOFError, ConnectionError):
            raise
        except Exception:  # one broken episode must not end the run; its row tells
            environment, loaded = None, None
            connection.send(("error", traceback.format_exc()))
