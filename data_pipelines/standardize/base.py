"""What a standardisation is: from the raw steps of one RLDS dataset to the episode schema.

A dataset is one file beside this one that defines `STANDARD`: which raw fields it reads, with the
shapes it was written for, and a pure function from them to actions and states. Canonical actions
end in the gripper, 1 open and 0 closed (spec: Open-X Embodiment, EEF_POS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Steps = Mapping[str, np.ndarray | list[bytes]]  # raw field -> [T, ...] or T byte strings


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a dataset's `features.json`, of every step or of the whole episode.

    Attributes:
        kind: how it is stored; "other" features cannot be read.
        shape: of one step, of tensors only; None stands for any length.
        dtype: numpy name of the elements.
        encoding: of tensors stored as bytes: "none", "bytes" or "zlib".
    """

    kind: Literal["tensor", "image", "text", "other"]
    shape: tuple[int | None, ...] = ()
    dtype: str = "float32"
    encoding: str = "none"


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A standardised trajectory of n steps.

    Attributes:
        kept: the raw steps that remain, in order; n of them.
        actions: float32[n, A]; `actions[t]` is executed after frame t.
        states: float32[n, P].
        instructions: the canonical one first; one empty text where unlabelled.
    """

    kept: range
    actions: np.ndarray
    states: np.ndarray
    instructions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Standard:
    """How one dataset is read.

    Attributes:
        embodiment: name of the robot.
        fps: control rate in Hz.
        cameras: our camera name -> raw image field.
        fields: every raw field that is read, with the kind and shape it must have.
        standardize: raw steps -> trajectory. Raises ValueError for a trajectory it cannot use.
    """

    embodiment: str
    fps: float
    cameras: Mapping[str, str]
    fields: Mapping[str, Field]
    standardize: Callable[[Steps], Trajectory]


def first_text(values: np.ndarray | list[bytes]) -> tuple[str, ...]:
    """The instruction of a trajectory: its first step's text; one empty text where unlabelled.

    Raises:
        ValueError: the bytes are not UTF-8.
    """
    return (values[0].decode().strip() if len(values) else "",)
