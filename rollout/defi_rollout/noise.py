"""Noise that is a function of a seed, and the keys of an observation that choose it.

The same seed gives the same noise on every platform.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from defi_rollout import errors

PREFIX = "_defi/"
SEED = "_defi/seed"
RESET = "_defi/reset"


class NoiseSequence:
    """What one robot's noise is drawn from: a seed, and how many observations it has sent."""

    def __init__(self, seed: int = 0):
        self._seed, self._calls = seed, 0
        self._lock = threading.Lock()

    def reset(self, seed: int | None = None) -> None:
        """Starts over, with `seed` where given."""
        with self._lock:
            self._seed = self._seed if seed is None else _check_seed(seed, RESET)
            self._calls = 0

    def keys(self, obs: Mapping[str, Any], rows: int) -> list[tuple[int, ...]]:
        """Returns the integers that each row's noise is a function of, and goes on by one call.

        Raises:
            UserError: the observation's "_defi/seed" or "_defi/reset" is malformed.
        """
        reset = obs.get(RESET, False)
        if reset is not True and reset is not False:
            reset = _check_seed(reset, RESET)
        if SEED in obs:
            with errors.UserError.instead_of(ValueError, f"{SEED!r} is ragged", "observation"):
                seeds = np.asarray(obs[SEED])
            if seeds.shape not in ((), (rows,)):
                raise errors.UserError(
                    f"{SEED!r} has the shape {seeds.shape}", "observation", f"send 1 or {rows}"
                )
            found = [(_check_seed(seed),) for seed in np.broadcast_to(seeds, (rows,)).tolist()]
        if reset is not False:
            self.reset(None if reset is True else reset)
        if SEED in obs:
            return found
        with self._lock:
            self._calls += 1
            return [(self._seed, self._calls - 1, row) for row in range(rows)]


def draw(key: Sequence[int], name: str, shape: Sequence[int]) -> np.ndarray:
    """Standard normal float32 of `shape`: a function of the integers `key` and the name alone."""
    entropy = [*key, zlib.crc32(name.encode())]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    return generator.standard_normal(shape, dtype=np.float32)


def _check_seed(seed: Any, key: str = SEED) -> int:
    if isinstance(seed, np.integer):
        seed = int(seed)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise errors.UserError(f"{key!r} is {seed!r}", "observation", "send an integer >= 0")
    return seed
