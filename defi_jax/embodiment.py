"""What a robot is: its cameras, action vector, frames, units and control rate.

Facts are data; nothing here converts anything. A bundle carries its embodiment, so that a client
can refuse a policy of another robot.

Legend: A action dimension.
"""

import dataclasses

from defi_jax import errors

# Observation key of each camera: the names that users of openpi's servers know.
CAMERA_KEYS = {"static": "observation/image", "gripper": "observation/wrist_image"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embodiment:
    """One robot as its data sets describe it.

    Attributes:
        name: as in the episodes.
        control_hz: actions per second.
        action_names: one per dimension, A of them.
        action_low: smallest value sent to the robot.
        action_high: largest value sent to the robot.
        frame: frame of the translation.
        rotation: how rotations are written; "none" where there are none.
        units: what one unit of an action means.
        gripper: which sign opens.
    """

    name: str
    control_hz: float
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    frame: str
    rotation: str
    units: str
    gripper: str


EMBODIMENTS = {
    robot.name: robot
    for robot in (
        Embodiment(
            name="metaworld_sawyer",
            control_hz=80.0,  # frame_skip 5 x 2.5 ms
            action_names=("x", "y", "z", "gripper"),
            action_low=(-1.0,) * 4,
            action_high=(1.0,) * 4,
            frame="world",
            rotation="none",
            units="1 = 1 cm of the hand's target per step",
            gripper="+1 closes, -1 opens",
        ),
        Embodiment(
            name="franka_panda",  # CALVIN's relative actions
            control_hz=30.0,
            action_names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
            action_low=(-1.0,) * 7,
            action_high=(1.0,) * 7,
            frame="world",
            rotation="euler xyz",
            units="1 = 0.02 m or 0.05 rad per step",
            gripper="+1 opens, -1 closes",
        ),
    )
}


def get(name: str) -> Embodiment:
    """Returns the embodiment called `name`.

    Raises:
        UserError: it is not in the table.
    """
    if name not in EMBODIMENTS:
        raise errors.UserError(
            f"unknown embodiment {name!r}", "config.embodiment", f"known: {', '.join(EMBODIMENTS)}"
        )
    return EMBODIMENTS[name]
