"""Motion planning, fridges, table tops and bimanual tasks (University of Tokyo)."""

import dataclasses

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_LSMO_STATE = columns.tensor("observation/state", 13)
_PR2_STATE = columns.tensor("observation/state", 7)

_PR2 = base.Standard(
    robot="pr2",
    control_hz=10.0,
    actions=(columns.tensor("action", 8)[:7],),  # the last is the terminate flag
    states=(_PR2_STATE[:6], columns.zeros(), _PR2_STATE[6:]),
    convention=base.UNDOCUMENTED,
    doubts=base.POSE_AS_STORED,
)
_XARM = base.Standard(
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
    "tokyo_u_lsmo_converted_externally_to_rlds": base.Standard(
        robot="cobotta",
        control_hz=10.0,
        actions=(columns.tensor("action", 7),),
        states=(_LSMO_STATE[:6], columns.zeros(), _LSMO_STATE[12:]),
        convention=base.UNDOCUMENTED,
        doubts=base.POSE_AS_STORED,
    ),
    "utokyo_pr2_opening_fridge_converted_externally_to_rlds": _PR2,
    "utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds": _PR2,
    "utokyo_xarm_pick_and_place_converted_externally_to_rlds": _XARM,
    "utokyo_xarm_bimanual_converted_externally_to_rlds": dataclasses.replace(
        _XARM,
        cameras=base.views(primary="image"),
        actions=(columns.tensor("action", 14)[7:],),  # the right arm; the left one is left out
        states=(columns.tensor("observation/pose_r", 6), columns.zeros(2)),
    ),
}
