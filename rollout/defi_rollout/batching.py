"""Observations of several robots through one policy, in as few calls as possible.

One thread owns the policy. It takes all that wait, and pads them to the next of a few batch sizes
that were compiled before, so that nothing compiles while robots wait.

Legend: B rows of a batch.
"""

import concurrent.futures
import dataclasses
import itertools
import logging
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from defi_rollout import errors

# Robots that act in step send within this time of each other's answers.
GATHER_SECONDS = 0.003

_log = logging.getLogger(__name__)
_Inputs = dict[str, np.ndarray]


@dataclasses.dataclass(kw_only=True, eq=False)
class _Request:
    """One robot's observation; `noise` is the robot's own and tells robots apart."""

    obs: Mapping[str, Any]
    noise: Any
    answer: concurrent.futures.Future
    inputs: _Inputs = dataclasses.field(default_factory=dict)  # when prepared, and the next two
    rows: int = 0
    is_batched: bool = False


class Batcher:
    """Runs a policy in a thread of its own.

    Args:
        policy: a `policy.Policy`, of which `prepare` and `run` are called from that thread only.
        max_rows: most rows of one call, at least 1.
        max_waiting: most observations that wait; more are refused.
    """

    def __init__(self, policy: Any, *, max_rows: int = 8, max_waiting: int = 256):
        self._policy, self._max_rows = policy, max_rows
        self._sizes = batch_sizes(max_rows)
        self._waiting: queue.Queue[_Request | None] = queue.Queue(max_waiting)
        self._recent: tuple[set[int], set[int]] = (set(), set())  # robots of the last two calls
        self._thread = threading.Thread(target=self._serve, name="policy", daemon=True)
        self.calls = 0
        self.rows = 0
        self.seconds = 0.0
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Observations that no call has taken yet."""
        return self._waiting.qsize()

    def submit(self, obs: Mapping[str, Any], noise: Any) -> concurrent.futures.Future:
        """Queues an observation; the future holds what `Policy.infer` returns, or its error.

        Raises:
            UserError: too many wait.
        """
        answer: concurrent.futures.Future = concurrent.futures.Future()
        try:
            self._waiting.put_nowait(_Request(obs=obs, noise=noise, answer=answer))
        except queue.Full:
            raise errors.UserError(
                f"{self._waiting.maxsize} observations wait already", "server", "send later"
            ) from None
        return answer

    def close(self) -> None:
        """Answers what waits, then ends the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (requests := self._gather()) is not None:
            for group in _split(filter(self._prepare, requests), self._max_rows):
                self._answer(group)

    def _gather(self) -> list[_Request] | None:
        """Waits for one observation, and shortly for the robots of the last calls; None at the end.

        Without that wait robots in step split into two groups that take turns.
        """
        first = self._waiting.get()
        if first is None:
            return None
        found = [first]
        deadline = time.monotonic() + GATHER_SECONDS
        expected = min(len(self._recent[0] | self._recent[1]), self._max_rows)
        while len(found) < self._max_rows:
            left = deadline - time.monotonic() if len(found) < expected else 0
            try:
                another = self._waiting.get(block=left > 0, timeout=max(left, 0))
            except queue.Empty:
                break
            if another is None:
                self._waiting.put(None)  # the end comes after these
                break
            found.append(another)
        self._recent = (self._recent[1], {id(request.noise) for request in found})
        return found

    def _prepare(self, request: _Request) -> bool:
        """Fills in the inputs; False where there is nothing to run."""
        if not request.answer.set_running_or_notify_cancel():
            return False
        try:
            request.inputs, request.is_batched = self._policy.prepare(
                request.obs, request.noise, self._max_rows
            )
            request.rows = len(next(iter(request.inputs.values())))
        except Exception as error:  # the robot that sent it is told, the others go on
            request.answer.set_exception(error)
            return False
        return True

    def _answer(self, group: list[_Request]) -> None:
        rows = sum(one.rows for one in group)
        size = next(size for size in self._sizes if size >= rows)
        started = time.perf_counter()
        try:
            actions = self._policy.run(_joined([one.inputs for one in group], size - rows))
        except Exception as error:
            if len(group) == 1:
                group[0].answer.set_exception(error)
                return
            for one in group:  # whose fault it was is found alone
                self._answer([one])
            return
        seconds = time.perf_counter() - started
        self.calls += 1
        self.rows += rows
        self.seconds += seconds
        ends = itertools.accumulate(one.rows for one in group)
        for one, end in zip(group, ends, strict=True):
            own = actions[end - one.rows : end]
            timing = {"infer_ms": 1000 * seconds}
            one.answer.set_result(
                {"actions": own if one.is_batched else own[0], "policy_timing": timing}
            )


def batch_sizes(max_rows: int) -> tuple[int, ...]:
    """Returns 1, 2, 4, ... and `max_rows`: the sizes to compile."""
    powers = itertools.takewhile(lambda size: size < max_rows, (2**i for i in itertools.count()))
    return (*powers, max_rows)


def _split(prepared: Iterable[_Request], max_rows: int) -> list[list[_Request]]:
    groups: list[list[_Request]] = []
    rows = max_rows
    for one in prepared:
        if rows + one.rows > max_rows:
            groups.append([])
            rows = 0
        groups[-1].append(one)
        rows += one.rows
    return groups


def _joined(parts: list[_Inputs], padding: int) -> _Inputs:
    """Rows of all parts, and copies of the last row to fill the batch."""
    joined = {}
    for key in parts[0]:
        last = parts[-1][key][-1:]
        joined[key] = np.concatenate([part[key] for part in parts] + [last] * padding)
    return joined
