"""RoboSet: kitchen tasks of a Franka arm, commanded in joint space (CMU)."""

from data_pipelines.open_x import base, columns, gripper
from defi_jax import embodiment

_ACTION = columns.tensor("action", 8)

_ROBOSET = base.Standard(
    robot="franka",
    control_hz=5.0,
    cameras=base.views(primary="image_left", secondary="image_right", wrist="image_wrist"),
    actions=(_ACTION[:7], _ACTION[7:].within(-1, 1).then(gripper.clip, gripper.invert)),
    states=(columns.tensor("observation/state", 8),),
    convention=embodiment.joints(),
    doubts=(
        "action: joints, though the official registry calls it a pose and so cannot load it",
        "motion: whether joint commands are absolute is not documented",
    ),
)

STANDARDS = {"roboset": _ROBOSET, "robo_set": _ROBOSET}  # the catalogue uses the second name
