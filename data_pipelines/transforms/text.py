"""Instructions of a sample: choice of a paraphrase, tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChooseParaphrase:
    """One of an episode's instructions, drawn in training, the first one in evaluation.

    ("open it", "pull it open") -> "pull it open"

    Attributes:
        draw: whether to draw.
    """

    draw: bool

    def __call__(self, instructions: Sequence[str], rng: np.random.Generator) -> str:
        """Returns the chosen instruction."""
        number = int(rng.integers(len(instructions)))
        return instructions[number if self.draw else 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenize:
    """Ids of a batch of instructions, once for each text encoder.

    Attributes:
        by_role: tokenizer of each role, such as "gfdm", "gidm", "goal".
    """

    by_role: Mapping[str, Tokenizer]

    def __call__(self, texts: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns ids int32[B, L] and mask bool[B, L] by role."""
        return {role: tokenizer(texts) for role, tokenizer in self.by_role.items()}

    def describe(self) -> dict[str, Any]:
        """JSON-able facts, for the fingerprint."""
        return {role: tokenizer.describe() for role, tokenizer in self.by_role.items()}
