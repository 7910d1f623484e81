"""Pick-and-place and bimanual tasks of xArms (University of Tokyo)."""

import dataclasses

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_ONE_ARM = base.Standard(
    robot="xarm",
    control_hz=10.0,
    cameras=base.views(primary="image", secondary="image2", wrist="hand_image"),
    actions=(columns.tensor("action", 7),),
    states=(columns.tensor("observation/end_effector_pose", 6), columns.zeros(2)),
    convention=embodiment.end_effector(
        motion=embodiment.UNKNOWN, rotation="yaw, pitch, roll", gripper=embodiment.UNKNOWN
    ),
    doubts=(
        "rotation: yaw, pitch, roll in the places of roll, pitch, yaw",
        base.GRIPPER_AS_STORED,
    ),
)

STANDARDS = {
    "utokyo_xarm_pick_and_place_converted_externally_to_rlds": _ONE_ARM,
    "utokyo_xarm_bimanual_converted_externally_to_rlds": dataclasses.replace(
        _ONE_ARM,
        cameras=base.views(primary="image"),
        actions=(columns.tensor("action", 14)[7:],),  # the right arm; the left one is left out
        states=(columns.tensor("observation/pose_r", 6), columns.zeros(2)),
    ),
}
