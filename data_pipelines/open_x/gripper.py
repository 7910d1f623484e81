"""Rules that turn recorded gripper signals into 1 (open) and 0 (closed), per trajectory.

Each maps float[T] or float[T, 1] to float32 of the same shape.
"""

from __future__ import annotations

import numpy as np

_OPEN_ABOVE, _CLOSED_BELOW = 0.95, 0.05
_COMMANDED = 0.1  # relative commands below this hold


def clip(signal: np.ndarray) -> np.ndarray:
    """Cuts to 0..1: signals of -1..1 lose their negative half.  [-1, 0.3, 1] -> [0, 0.3, 1]."""
    return np.clip(np.asarray(signal, np.float32), 0, 1)


def invert(signal: np.ndarray) -> np.ndarray:
    """Turns closing into opening.  [0, 0.3, 1] -> [1, 0.7, 0]."""
    return 1 - np.asarray(signal, np.float32)


def binarize(signal: np.ndarray) -> np.ndarray:
    """Decides each step of a continuous opening signal.

    Above 0.95 is open, below 0.05 closed. Values between are on their way and take the state they
    reach, the next decided one; undecided steps at the end take the raw last value.

    Example: [1, 1, .7, .3, 0, 0, .5, 1] -> [1, 1, 0, 0, 0, 0, 1, 1].
    """
    values = np.asarray(signal, np.float32).ravel()
    reached = np.select([values > _OPEN_ABOVE, values < _CLOSED_BELOW], [1.0, 0.0], np.nan)
    backwards = np.append(reached, values[-1:])[::-1]
    return _hold(backwards)[:0:-1].astype(np.float32).reshape(np.shape(signal))


def relative_to_absolute(signal: np.ndarray) -> np.ndarray:
    """Integrates commands "close" (> 0.1), "open" (< -0.1) and "hold" into a state.

    Before the first command the state is its opposite; without any command the gripper is open.

    Example: [0, 0, 1, 0, -1, 0] -> [1, 1, 0, 0, 1, 1].
    """
    commands = np.asarray(signal, np.float32).ravel()
    wanted = np.select([commands < -_COMMANDED, commands > _COMMANDED], [1.0, 0.0], np.nan)
    decided = wanted[~np.isnan(wanted)]
    start = 1 - decided[0] if decided.size else 1.0
    held = _hold(np.append(start, wanted))[1:]
    return held.astype(np.float32).reshape(np.shape(signal))


def _hold(values: np.ndarray) -> np.ndarray:
    """Repeats numbers where NaN follow, the first is none.  [0, nan, 1, nan] -> [0, 0, 1, 1]."""
    return values[np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))]
