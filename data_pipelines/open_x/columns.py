"""The vocabulary of standardisations: pieces of raw fields that make up actions and states.

    action = columns.tensor("action", 7)
    actions = (action[:6], action[6:].then(gripper.clip, gripper.invert).within(-1, 1))

reads the field "action", float[7] at every step, and gives [T, 7] with the gripper inverted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Steps = Mapping[str, np.ndarray | list[bytes]]  # raw field -> [T, ...] or T byte strings
Rule = Callable[[np.ndarray], np.ndarray]  # float32[T, k] -> float32[T, m]

_SLACK = 0.05  # of a documented range, for noise of sensors and of float32


class SurpriseError(ValueError):
    """A field holds values outside of the range that its dataset documents."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a dataset's `features.json`, of every step or of the whole episode.

    Attributes:
        kind: how it is stored; "other" features cannot be read.
        shape: shape of one step, of tensors only; None stands for any length.
        dtype: numpy name of the elements; "any" where nobody has seen the real data.
        encoding: encoding of tensors stored as bytes: "none", "bytes" or "zlib".
    """

    kind: Literal["tensor", "image", "text", "other"]
    shape: tuple[int | None, ...] = ()
    dtype: str = "float32"
    encoding: str = "none"


@dataclass(frozen=True, kw_only=True)
class Column:
    """Some dimensions of a raw tensor; see the module's docstring.

    Attributes:
        name: name of the raw field.
        field: its shape and dtype.
        dims: which of its dimensions.
        rules: applied in order.
        low: smallest raw value that the dataset documents.
        high: largest.
    """

    name: str
    field: Field
    dims: slice = dataclasses.field(default_factory=lambda: slice(None))
    rules: tuple[Rule, ...] = ()
    low: float = -np.inf
    high: float = np.inf

    @property
    def width(self) -> int:
        """Number of dimensions before the rules."""
        size = self.field.shape[0] if self.field.shape else 1
        assert size is not None
        return len(range(size)[self.dims])

    def __getitem__(self, dims: slice) -> Column:
        """Returns these dimensions of the field."""
        return dataclasses.replace(self, dims=dims)

    def then(self, *rules: Rule) -> Column:
        """Returns the column with rules applied to it."""
        return dataclasses.replace(self, rules=self.rules + rules)

    def within(self, low: float, high: float) -> Column:
        """Returns the column with its documented range, which is checked before the rules."""
        return dataclasses.replace(self, low=low, high=high)

    def __call__(self, steps: Steps, num_steps: int) -> np.ndarray:
        """Returns float32[T, k]; a field of scalars gives k = 1.

        Raises:
            SurpriseError: a value is outside of the range.
            ValueError: a value is not finite; rules would make one of it.
        """
        values = np.asarray(steps[self.name], np.float32).reshape(num_steps, -1)[:, self.dims]
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            step = int(np.argmin(finite))
            raise ValueError(f"field '{self.name}' is not finite at step {step}")
        slack = _SLACK * (self.high - self.low)
        if (values < self.low - slack).any() or (values > self.high + slack).any():
            raise SurpriseError(
                f"field '{self.name}' holds values from {values.min():g} to {values.max():g}, "
                f"its dataset documents {self.low:g} to {self.high:g}"
            )
        for rule in self.rules:
            values = rule(values)
        return values


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Dimensions that the dataset lacks."""

    width: int
    value: float

    def __call__(self, steps: Steps, num_steps: int) -> np.ndarray:
        """Returns float32[T, width]."""
        del steps
        return np.full((num_steps, self.width), self.value, np.float32)


Part = Column | Constant


def tensor(name: str, *shape: int, dtype: str = "float32") -> Column:
    """Returns the field of this name, with the shape that it has at every step."""
    return Column(name=name, field=Field(kind="tensor", shape=shape, dtype=dtype))


# Motion of the datasets in RT-1's format: [T, 3] and [T, 3].
RT1_MOTION = (tensor("action/world_vector", 3), tensor("action/rotation_delta", 3))


def rt1_closedness(*shape: int) -> Column:
    """Returns the gripper command of RT-1's format: 1 closes, -1 opens; absolute or relative."""
    return tensor("action/gripper_closedness_action", *shape).within(-1, 1)


def zeros(width: int = 1) -> Constant:
    """Returns `width` dimensions of zero."""
    return Constant(width=width, value=0.0)


def stack(parts: tuple[Part, ...] | None, steps: Steps, num_steps: int) -> np.ndarray | None:
    """Returns the parts side by side, float32[T, sum of widths]; None for None."""
    if parts is None:
        return None
    return np.concatenate([part(steps, num_steps) for part in parts], axis=1)
