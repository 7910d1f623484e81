"""What a standardisation is: from the raw steps of one RLDS dataset to the episode schema.

A dataset is one file in `datasets/` whose `STANDARDS` says by name which raw fields become cameras,
actions, states and text. Canonical actions end in the gripper, 1 open and 0 closed (Open-X
Embodiment, "EEF_POS"); what a dataset does otherwise is in its `convention` and its `doubts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines.open_x import columns, gripper
from defi_jax import embodiment

Field = columns.Field
Steps = columns.Steps

IMAGE, TEXT = Field(kind="image", dtype="uint8"), Field(kind="text", dtype="object")
INSTRUCTION = "language_instruction"
NATURAL_INSTRUCTION = "observation/natural_language_instruction"  # of the first Open-X datasets
DEFAULT_OFFSET = (9, 9)

# Actions of RT-1's format, the gripper commanded relatively.
RT1_ACTIONS = (*columns.RT1_MOTION, columns.rt1_closedness(1).then(gripper.relative_to_absolute))

# What several datasets leave open: their convention, and the doubts that follow from it.
UNDOCUMENTED = embodiment.end_effector(motion=embodiment.UNKNOWN, gripper=embodiment.UNKNOWN)
GRIPPER_AS_STORED = "gripper: left as stored, polarity not documented"
POSE_AS_STORED = (
    "motion: whether poses are absolute or deltas is not documented",
    GRIPPER_AS_STORED,
)

_BGR = "colours: the Open-X bucket's copy has red and blue swapped in {}; prepared copies do not"
BGR_WRIST, BGR_ALL = _BGR.format("the wrist view"), _BGR.format("all views")


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A standardised trajectory of n steps.

    Attributes:
        kept: the raw steps that remain, in order; n of them.
        actions: float32[n, A]; `actions[t]` is executed after frame t. None for action-free video.
        states: float32[n, P], or None.
        instructions: the canonical one first; one empty text where unlabelled.
    """

    kept: range
    actions: np.ndarray | None
    states: np.ndarray | None
    instructions: tuple[str, ...]


def first_text(values: np.ndarray | Sequence[bytes]) -> tuple[str, ...]:
    """The instruction of a trajectory: its first step's text; one empty text where unlabelled.

    Where a step has several texts, they are paraphrases.

    Raises:
        ValueError: the bytes are not UTF-8.
    """
    first = np.ravel(np.asarray(values[:1], object))
    texts = dict.fromkeys(text.decode().strip() for text in first)
    return tuple(text for text in texts if text) or ("",)


def views(*, primary: str = "", secondary: str = "", wrist: str = "") -> dict[str, str]:
    """Returns our camera names -> raw image fields, of the views that there are."""
    raw = {"static": primary, "secondary": secondary, "gripper": wrist}
    return {camera: f"observation/{name}" for camera, name in raw.items() if name}


@dataclass(frozen=True, kw_only=True)
class Standard:
    """How one dataset is read.

    Attributes:
        robot: who acts.
        control_hz: steps per second.
        actions: parts of the action vector, in order; None for action-free video.
        states: likewise; zeros stand where the canonical layout has what the dataset lacks.
        cameras: our camera name -> raw image field, see `views`; most have one view, "image".
        convention: what the actions mean, canonical ones where nothing is said; None without
            actions.
        language: raw field of the instruction, of a step or of the episode; "" for none.
        language_field: how it is stored.
        read_language: its values -> the instructions.
        finish: last change of the whole trajectory. Raises ValueError for one it cannot use.
        success_flag: bool field of the episode; episodes where it is false are left out.
        pair_offset: smallest and largest number of steps between the frames of a GIDM pair
            (official Step2_GIDM/datasets/rlds/dataset.py:359-367; the window less one).
        doubts: conventions of the dataset that look wrong or that nobody has checked.
        version: version of all the above; whoever changes what the episodes of the same files
            become raises it, so that no store or stream mixes both.
    """

    robot: str
    control_hz: float
    actions: tuple[columns.Part, ...] | None
    states: tuple[columns.Part, ...] | None
    cameras: Mapping[str, str] = field(default_factory=lambda: views(primary="image"))
    convention: embodiment.Convention | None = field(default_factory=embodiment.end_effector)
    language: str = INSTRUCTION
    language_field: Field = TEXT
    read_language: Callable[..., tuple[str, ...]] = first_text
    finish: Callable[[Trajectory], Trajectory] | None = None
    success_flag: str = ""
    pair_offset: tuple[int, int] = DEFAULT_OFFSET
    doubts: tuple[str, ...] = ()
    version: int = 1

    def __post_init__(self):
        if (self.actions is None) != (self.convention is None):
            raise ValueError("actions and their convention come together")

    @property
    def recipe(self) -> dict[str, Any]:
        """What stores and streams keep of it; columns and functions count by the version."""
        kept = ("version", "robot", "control_hz", "language", "success_flag")
        return {name: getattr(self, name) for name in kept} | {"cameras": dict(self.cameras)}

    @property
    def fields(self) -> dict[str, Field]:
        """Every raw field that is read, with the kind and shape it must have."""
        parts = [*(self.actions or ()), *(self.states or ())]
        low_dimensional = [part for part in parts if isinstance(part, columns.Column)]
        return (
            {part.name: part.field for part in low_dimensional}
            | dict.fromkeys(self.cameras.values(), IMAGE)
            | ({self.language: self.language_field} if self.language else {})
        )

    def standardize(self, steps: Steps) -> Trajectory:
        """Returns the trajectory of raw steps.

        Raises:
            SurpriseError: values outside of the range that the dataset documents.
            ValueError: a trajectory that cannot be used.
        """
        num_steps = len(steps[next(iter(self.cameras.values()))])
        trajectory = Trajectory(
            kept=range(num_steps),
            actions=columns.stack(self.actions, steps, num_steps),
            states=columns.stack(self.states, steps, num_steps),
            instructions=self.read_language(steps[self.language] if self.language else ()),
        )
        return self.finish(trajectory) if self.finish else trajectory
