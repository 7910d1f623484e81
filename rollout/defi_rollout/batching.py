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
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from defi_rollout import errors

# Robots that act in step send within this time of each other's answers.
GATHER_SECONDS = 0.003

_log = logging.getLogger(__name__)
_Inputs = dict[str, np.ndarray]


class BatchedPolicy(Protocol):
    """What the batcher needs of a policy; see `policy.Policy`."""

    def prepare(self, obs: Any, noise: Any) -> tuple[_Inputs, bool]:
        """Returns arrays whose first axis is B, and whether the observation was batched."""
        ...

    def run(self, inputs: _Inputs) -> np.ndarray:
        """Returns float32 [B, S, A]."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Request:
    """One robot's observation; `noise` is the robot's own and tells robots apart."""

    obs: Mapping[str, Any]
    noise: Any
    answer: concurrent.futures.Future


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Prepared:
    inputs: _Inputs
    rows: int
    is_batched: bool
    request: _Request


class Batcher:
    """Runs a policy in a thread of its own.

    Args:
        policy: called from that thread only.
        max_rows: most rows of one call, at least 1.
        max_waiting: most observations that wait; more are refused.
    """

    def __init__(self, policy: BatchedPolicy, *, max_rows: int = 8, max_waiting: int = 256):
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
            prepared = [one for one in map(self._prepare, requests) if one is not None]
            for group in _split(prepared, self._max_rows):
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

    def _prepare(self, request: _Request) -> _Prepared | None:
        if not request.answer.set_running_or_notify_cancel():
            return None
        try:
            inputs, is_batched = self._policy.prepare(request.obs, request.noise)
            rows = len(next(iter(inputs.values())))
            if rows > self._max_rows:
                raise errors.UserError(
                    f"{rows} rows", "observation", f"send at most {self._max_rows} (--max_batch)"
                )
        except Exception as error:  # the robot that sent it is told, the others go on
            request.answer.set_exception(error)
            return None
        return _Prepared(inputs=inputs, rows=rows, is_batched=is_batched, request=request)

    def _answer(self, group: list[_Prepared]) -> None:
        rows = sum(one.rows for one in group)
        size = next(size for size in self._sizes if size >= rows)
        started = time.perf_counter()
        try:
            actions = self._policy.run(_joined([one.inputs for one in group], size - rows))
        except Exception as error:
            if len(group) == 1:
                group[0].request.answer.set_exception(error)
                return
            for one in group:  # whose fault it was is found alone
                self._answer([one])
            return
        seconds = time.perf_counter() - started
        self.calls, self.rows, self.seconds = (
            self.calls + 1,
            self.rows + rows,
            self.seconds + seconds,
        )
        ends = itertools.accumulate(one.rows for one in group)
        for one, end in zip(group, ends, strict=True):
            own = actions[end - one.rows : end]
            one.request.answer.set_result(
                {
                    "actions": own if one.is_batched else own[0],
                    "policy_timing": {"infer_ms": 1000 * seconds},
                }
            )


def batch_sizes(max_rows: int) -> tuple[int, ...]:
    """Returns 1, 2, 4, ... and `max_rows`: the sizes to compile."""
    powers = itertools.takewhile(lambda size: size < max_rows, (2**i for i in itertools.count()))
    return (*powers, max_rows)


def _split(prepared: list[_Prepared], max_rows: int) -> list[list[_Prepared]]:
    groups: list[list[_Prepared]] = []
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
