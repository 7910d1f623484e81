"""How predicted chunks become single actions.

All executors have the same two methods, so a robot's loop does not change with them:

    ChunkExecutor       runs the first k actions of a chunk, then asks again: open loop for k = S,
                        receding horizon for k < S
    PrefetchExecutor    asks for the next chunk while the last one is still running
    EnsembleExecutor    asks at every step and averages what all chunks say of it

Runs on Python 3.8. Legend: S action-chunk length, A action dimension, k actions run per chunk.
"""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from defi_rollout import errors


class Actor(Protocol):
    """A policy, in process or remote."""

    def infer(self, obs: Any) -> dict[str, Any]:
        """Returns {"actions": float32 [S, A], ...}."""
        ...

    def reset(self) -> None:
        """Starts a new episode."""


class ChunkExecutor:
    """Runs the first k actions of each chunk, then asks for the next one.

    Args:
        actor: the policy.
        execute_horizon: k, in 1..S.
    """

    def __init__(self, actor: Actor, execute_horizon: int):
        _check_at_least(execute_horizon, 1, "execute_horizon")
        self._actor, self._execute_horizon = actor, execute_horizon
        self._left: collections.deque[np.ndarray] = collections.deque()

    def reset(self) -> None:
        """Forgets the current chunk and starts a new episode."""
        self._left.clear()
        self._actor.reset()

    def next_action(self, observe: Callable[[], Any]) -> np.ndarray:
        """The next action, float32 [A]; `observe` is called only when a new chunk is needed."""
        if not self._left:
            chunk = self._actor.infer(observe())["actions"]
            self._left.extend(_first(chunk, self._execute_horizon))
        return self._left.popleft()


class PrefetchExecutor(ChunkExecutor):
    """Asks for the next chunk `lead` actions before it is needed, so that the robot never waits.

    A chunk's first `lead` actions belong to steps that the last chunk has done already: they are
    left out. Where the answer is late all the same, `next_action` waits for it.

    Args:
        actor: the policy; called from a thread.
        execute_horizon: k, actions run of each chunk, in 1..S-lead.
        lead: actions that are still to run when the next chunk is asked for, in 1..k: at least the
            time of one inference times the robot's rate.
    """

    def __init__(self, actor: Actor, execute_horizon: int, lead: int):
        _check_at_least(lead, 1, "lead")
        _check_at_least(execute_horizon, lead, "execute_horizon")
        super().__init__(actor, execute_horizon)
        self._lead, self._pool = lead, concurrent.futures.ThreadPoolExecutor(1)
        self._next: concurrent.futures.Future | None = None

    def reset(self) -> None:
        """Waits for a call in progress, forgets all chunks and starts a new episode."""
        if self._next is not None:
            concurrent.futures.wait([self._next])
        self._next = None
        super().reset()

    def next_action(self, observe: Callable[[], Any]) -> np.ndarray:
        """The next action, float32 [A]; `observe` is called once a chunk, in this thread."""
        if not self._left:
            if self._next is None:
                chunk, skipped = self._actor.infer(observe())["actions"], 0
            else:
                chunk, skipped, self._next = self._next.result()["actions"], self._lead, None
            self._left.extend(_first(chunk, skipped + self._execute_horizon)[skipped:])
        if len(self._left) == self._lead:
            self._next = self._pool.submit(self._actor.infer, observe())
        return self._left.popleft()


class EnsembleExecutor:
    """Asks at every step; acts by the weighted mean of what the last S chunks say of it.

    The weight of the i-th oldest prediction is exp(-decay * i), as in ACT (arXiv 2304.13705).

    Args:
        actor: the policy.
        decay: at least 0; the larger, the more the oldest predictions count.
    """

    def __init__(self, actor: Actor, decay: float = 0.01):
        _check_at_least(decay, 0, "decay")
        self._actor, self._decay = actor, decay
        self._chunks: list[np.ndarray] = []  # what is left of each, the oldest first

    def reset(self) -> None:
        """Forgets all chunks and starts a new episode."""
        self._chunks.clear()
        self._actor.reset()

    def next_action(self, observe: Callable[[], Any]) -> np.ndarray:
        """The next action, float32 [A]; `observe` is called at every step."""
        self._chunks.append(self._actor.infer(observe())["actions"])
        weights = np.exp(-self._decay * np.arange(len(self._chunks)))
        said = np.stack([chunk[0] for chunk in self._chunks])
        self._chunks = [chunk[1:] for chunk in self._chunks if len(chunk) > 1]
        return np.average(said, axis=0, weights=weights).astype(np.float32)


def _first(chunk: np.ndarray, count: int) -> np.ndarray:
    if len(chunk) < count:
        raise errors.UserError(
            f"{len(chunk)} actions predicted, {count} wanted", "executor", "lower execute_horizon"
        )
    return chunk[:count]


def _check_at_least(value: float, least: float, name: str) -> None:
    if not value >= least:
        raise errors.UserError(f"{name} is {value}", "executor", f"give at least {least}")
