"""Actions of a sample: chunks with a padding mask, and the action between two frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

# Metadata of an episode whose source has one action fewer than frames: the last was made up.
LAST_IS_PADDING = "last_action_is_padding"


def recorded(actions: np.ndarray, metadata: Mapping[str, Any]) -> np.ndarray:
    """Returns float32[n or n - 1, A], the actions that the source has, from float32[n, A]."""
    return actions[:-1] if metadata.get(LAST_IS_PADDING) else actions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """The next `horizon` actions from a step, zeros and a false mask past the episode's end.

    actions [[1], [2], [3]], horizon 3, start 1  ->  [[2], [3], [0]], [True, True, False]

    Attributes:
        horizon: S.
    """

    horizon: int

    def __post_init__(self):
        if self.horizon < 1:
            raise ValueError(f"impossible chunk: {self}")

    def __call__(self, actions: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Cuts a chunk.

        Args:
            actions: float32[n, A].
            start: first step, 0 <= start < n.

        Returns:
            float32[S, A] and bool[S].
        """
        taken = actions[start : start + self.horizon]
        chunk = np.zeros((self.horizon, actions.shape[1]), np.float32)
        chunk[: len(taken)] = taken
        return chunk, np.arange(self.horizon) < len(taken)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanBetween:
    """The mean action of the steps that lead from one frame to another.

    actions [[1], [2], [3]], frames (0, 2)  ->  [1.5]
    """

    def __call__(self, actions: np.ndarray, first: int, second: int) -> np.ndarray:
        """Returns float32[A] from float32[n, A]; the action at `first` where both are the same."""
        return actions[first : max(second, first + 1)].mean(axis=0, dtype=np.float32)
