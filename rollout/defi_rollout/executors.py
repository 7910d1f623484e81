"""How predicted chunks become single actions.

Legend: S action-chunk length, A action dimension, k actions executed per chunk.
"""

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
        ...


class OpenLoopExecutor:
    """Executes the first k actions of each chunk, then asks for the next one.

    Args:
        actor: the policy.
        execute_horizon: k, in 1..S.
    """

    def __init__(self, actor: Actor, execute_horizon: int):
        if execute_horizon < 1:
            raise errors.UserError(
                f"execute_horizon is {execute_horizon}", "executor", "give at least 1"
            )
        self._actor, self._execute_horizon = actor, execute_horizon
        self._chunk: np.ndarray | None = None
        self._position = 0

    def reset(self) -> None:
        """Forgets the current chunk and starts a new episode."""
        self._chunk, self._position = None, 0
        self._actor.reset()

    def next_action(self, observe: Callable[[], Any]) -> np.ndarray:
        """The next action, float32 [A]; `observe` is called only when a new chunk is needed."""
        if self._chunk is None or self._position >= self._execute_horizon:
            chunk: np.ndarray = self._actor.infer(observe())["actions"]
            if len(chunk) < self._execute_horizon:
                raise errors.UserError(
                    f"{len(chunk)} actions predicted, {self._execute_horizon} to execute",
                    "executor",
                    "lower execute_horizon",
                )
            self._chunk, self._position = chunk, 0
        action = self._chunk[self._position]
        self._position += 1
        return action
