"""Rules that turn recorded gripper signals into 1 (open) and 0 (closed), per trajectory."""

from __future__ import annotations

import numpy as np

_OPEN_ABOVE, _CLOSED_BELOW = 0.95, 0.05


def binarize(signal: np.ndarray) -> np.ndarray:
    """Decides each step of a continuous opening signal.

    Above 0.95 is open, below 0.05 closed. Values between are on their way and take the state they
    reach, the next decided one; undecided steps at the end take the raw last value.

    Example: [1, 1, .7, .3, 0, 0, .5, 1] -> [1, 1, 0, 0, 0, 0, 1, 1].

    Args:
        signal: float[T].

    Returns:
        float32[T].
    """
    result = np.array(signal, np.float32)
    following = result[-1] if result.size else np.float32(0)
    for step in range(result.size - 1, -1, -1):
        if result[step] > _OPEN_ABOVE:
            following = np.float32(1)
        elif result[step] < _CLOSED_BELOW:
            following = np.float32(0)
        result[step] = following
    return result
