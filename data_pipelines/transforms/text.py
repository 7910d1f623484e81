"""Instructions of a sample: choice of a paraphrase, and what makes tokens of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Tokenizer(Protocol):
    """What a text encoder brings along (see defi_jax/models/frozen/); must be picklable."""

    @property
    def length(self) -> int:
        """Ids of a text, L."""
        ...

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids int32[B, L] and mask bool[B, L]."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-able facts that identify it."""
        ...


def paraphrase(instructions: Sequence[str], rng: np.random.Generator, *, draw: bool) -> str:
    """Returns one of an episode's instructions, drawn in training, the first one in evaluation.

    ("open it", "pull it open") -> "pull it open"
    """
    number = int(rng.integers(len(instructions)))
    return instructions[number if draw else 0]
