"""What a robot is and what its actions mean: cameras, frame, rotation, units, gripper, rate.

Facts are data; nothing here converts anything. A bundle carries its embodiment, so that a client
can refuse a policy of another robot, and datasets whose actions mean different things are not
mixed (`check_mix`).

Legend: A action dimension.
"""

import dataclasses
import math
from collections.abc import Mapping

from defi_jax import errors

# Observation key of each camera: the names that users of openpi's servers know.
CAMERA_KEYS = {
    "static": "observation/image",
    "gripper": "observation/wrist_image",
    "secondary": "observation/secondary_image",
}

UNKNOWN = "unknown"
CANONICAL_GRIPPER = "1 opens, 0 closes"  # of Open-X, after standardisation
POSE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convention:
    """What the numbers of an action mean; actions mix where their conventions are equal.

    Attributes:
        action_names: one per dimension, A of them.
        motion: what is commanded: "delta" or "absolute" pose, "velocity", "joint delta" or
            "joint absolute".
        frame: frame of the translation.
        rotation: how rotations are written; "none" where there are none.
        units: what one unit of an action means.
        gripper: which sign opens; "none" where nothing is commanded.
    """

    action_names: tuple[str, ...]
    motion: str
    frame: str
    rotation: str
    units: str
    gripper: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embodiment(Convention):
    """One robot as its data sets describe it.

    Attributes:
        name: the one that episodes carry.
        control_hz: actions per second.
        action_low: smallest value sent to the robot; None where none is documented, a bundle then
            has the smallest of the training data.
        action_high: largest value sent to the robot, likewise.
    """

    name: str
    control_hz: float
    action_low: tuple[float | None, ...]
    action_high: tuple[float | None, ...]


def end_effector(
    *,
    motion: str = "delta",
    rotation: str = "euler xyz",
    frame: str = UNKNOWN,
    units: str = UNKNOWN,
    gripper: str = CANONICAL_GRIPPER,
) -> Convention:
    """Returns the convention of a hand's pose and its gripper, A = 7; see `Convention`."""
    return Convention(
        action_names=POSE_NAMES,
        motion=motion,
        frame=frame,
        rotation=rotation,
        units=units,
        gripper=gripper,
    )


def _open_x(name: str, control_hz: float, convention: Convention) -> Embodiment:
    """Returns a robot of Open-X: of its limits the gripper's are known."""
    return Embodiment(
        name=name,
        control_hz=control_hz,
        action_low=(None,) * 6 + (0.0,),
        action_high=(None,) * 6 + (1.0,),
        **vars(convention),
    )


EMBODIMENTS = {
    robot.name: robot
    for robot in (
        Embodiment(
            name="metaworld_sawyer",
            control_hz=80.0,  # frame_skip 5 x 2.5 ms
            action_names=("x", "y", "z", "gripper"),
            action_low=(-1.0,) * 4,
            action_high=(1.0,) * 4,
            motion="delta",
            frame="world",
            rotation="none",
            units="1 = 1 cm of the hand's target per step",
            gripper="+1 closes, -1 opens",
        ),
        Embodiment(
            name="franka_panda",  # CALVIN's relative actions
            control_hz=30.0,
            action_names=POSE_NAMES,
            action_low=(-1.0,) * 7,
            action_high=(1.0,) * 7,
            motion="delta",
            frame="world",
            rotation="euler xyz",
            units="1 = 0.02 m or 0.05 rad per step",
            gripper="+1 opens, -1 closes",
        ),
        Embodiment(
            name="franka_panda_absolute",  # CALVIN's absolute actions
            control_hz=30.0,
            action_names=POSE_NAMES,
            action_low=(-1.0, -1.0, 0.0, -math.pi, -math.pi, -math.pi, -1.0),
            action_high=(1.0, 1.0, 2.0, math.pi, math.pi, math.pi, 1.0),
            motion="absolute",
            frame="world",
            rotation="euler xyz",
            units="metres, radians",
            gripper="+1 opens, -1 closes",
        ),
        Embodiment(
            name="libero_panda",  # robosuite's OSC_POSE as LIBERO runs it
            control_hz=20.0,
            action_low=(-1.0,) * 7,
            action_high=(1.0,) * 7,
            **vars(
                end_effector(
                    rotation="axis-angle",
                    frame="world",
                    units="1 = 0.05 m or 0.5 rad per step",
                    gripper="+1 closes, -1 opens",
                )
            ),
        ),
        # Fractal (RT-1), as stored. BC-Z's actions of this robot turn by rotation vectors at 10 Hz,
        # and SimplerEnv takes rotation vectors and a relative gripper, +1 closing.
        _open_x("google_robot", 3.0, end_effector()),
        _open_x("widowx250", 5.0, end_effector(units="m and rad per step")),  # Bridge
        *(
            Embodiment(
                name=name,  # as LeRobot's info.json calls it
                control_hz=30.0,
                action_names=(
                    "shoulder_pan",
                    "shoulder_lift",
                    "elbow_flex",
                    "wrist_flex",
                    "wrist_roll",
                    "gripper",
                ),
                action_low=(-180.0,) * 5 + (0.0,),
                action_high=(180.0,) * 5 + (100.0,),
                motion="joint absolute",
                frame="joints",
                rotation="none",
                # LeRobot records either, by its option use_degrees, and does not store which.
                units="degrees or -100 to 100 of each joint's range; gripper 0 to 100",
                gripper=UNKNOWN,
            )
            for name in ("so100_follower", "so101_follower")
        ),
    )
}


def joints(*, motion: str = UNKNOWN, gripper: str = CANONICAL_GRIPPER) -> Convention:
    """Returns the convention of an arm's seven joints and its gripper, A = 8."""
    return Convention(
        action_names=(*(f"joint_{number}" for number in range(1, 8)), "gripper"),
        motion=motion,
        frame="joints",
        rotation="none",
        units=UNKNOWN,
        gripper=gripper,
    )


def get(name: str, action_dim: int) -> Embodiment:
    """Returns the embodiment called `name`, whose actions have `action_dim` numbers.

    Raises:
        UserError: it is not in the table, or its actions have another width.
    """
    if name not in EMBODIMENTS:
        raise errors.UserError(
            f"unknown embodiment {name!r}", "config.embodiment", f"known: {', '.join(EMBODIMENTS)}"
        )
    robot = EMBODIMENTS[name]
    if len(robot.action_names) != action_dim:
        fitting = [own.name for own in EMBODIMENTS.values() if len(own.action_names) == action_dim]
        raise errors.UserError(
            f"actions have {action_dim} dimensions, {name} has {len(robot.action_names)}",
            "config.data.action_dim",
            "set --config.embodiment to the robot of the data, or add it to "
            f"defi_jax/embodiment.py; of that width: {', '.join(fitting) or 'none'}",
        )
    return robot


def check_mix(conventions: Mapping[str, Convention], where: str) -> None:
    """Refuses to learn actions of different meaning with one head.

    Args:
        conventions: by dataset.
        where: what an error names.

    Raises:
        UserError: conventions differ, an unknown fact from a known one included; all facts that
            differ are named with their datasets.
    """
    differing = []
    for fact in (field.name for field in dataclasses.fields(Convention)):
        datasets: dict[str, list[str]] = {}
        for name, convention in conventions.items():
            datasets.setdefault(str(getattr(convention, fact)), []).append(name)
        if len(datasets) > 1:
            said = "; ".join(f"{value} in {', '.join(names)}" for value, names in datasets.items())
            differing.append(f"{fact} is {said}")
    if differing:
        raise errors.UserError(
            f"actions of these datasets mean different things: {' | '.join(differing)}",
            where,
            "train joint on datasets of one convention, and take the others as action-free video "
            "(gfdm and gidm mix them; convert --strip_actions)",
        )


def check_robot(name: str, convention: Convention, dataset: str) -> None:
    """Refuses actions that mean something else than a robot's.

    Args:
        name: the robot; nothing is checked where it is unknown.
        convention: what is known of the actions; facts that are unknown there or here are not
            compared.
        dataset: what an error names.

    Raises:
        UserError: a fact differs.
    """
    robot = EMBODIMENTS.get(name)
    if robot is None:
        return
    differing = []
    for fact in (field.name for field in dataclasses.fields(Convention)):
        own, theirs = getattr(robot, fact), getattr(convention, fact)
        if UNKNOWN not in (own, theirs) and own != theirs:
            differing.append(f"{fact} is {theirs}, not {own}")
    if differing:
        raise errors.UserError(
            f"actions of {dataset} are not those of {name}: {' | '.join(differing)}",
            "config.embodiment",
            "set --config.embodiment to the robot of the data",
        )
