"""RoboNet: random interaction of seven kinds of arm (Berkeley and others)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_ACTION = columns.tensor("action", 5)  # xyz, one angle, gripper
_STATE = columns.tensor("observation/state", 5)

STANDARDS = {
    "robo_net": base.Standard(
        robot="several_arms",
        control_hz=1.0,
        cameras=base.views(primary="image", secondary="image1"),
        actions=(_ACTION[:4], columns.zeros(2), _ACTION[4:]),
        states=(_STATE[:4], columns.zeros(3), _STATE[4:]),
        convention=embodiment.end_effector(
            rotation="one angle in the place of roll", gripper=embodiment.UNKNOWN
        ),
        doubts=(
            "rotation: the only angle stands where others have roll",
            "gripper: left as stored, by the builder 1 above the middle of its range, else -1",
        ),
    )
}
