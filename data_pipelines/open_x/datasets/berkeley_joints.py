"""MVP and RPT: wrist-camera tasks commanded in joint space (Berkeley)."""

import dataclasses

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_GRIPPER = columns.tensor("observation/gripper", dtype="bool")  # 1 closed

_MVP = base.Standard(
    robot="xarm",
    control_hz=5.0,
    cameras=base.views(wrist="hand_image"),
    actions=(columns.tensor("action", 8),),
    states=(columns.tensor("observation/pose", 7), _GRIPPER),
    convention=embodiment.joints(motion="joint delta", gripper=embodiment.UNKNOWN),
    doubts=("gripper: a binary command left as stored, the state's is 1 closed",),
)

STANDARDS = {
    "berkeley_mvp_converted_externally_to_rlds": _MVP,
    "berkeley_rpt_converted_externally_to_rlds": dataclasses.replace(
        _MVP,
        robot="franka",
        control_hz=30.0,
        states=(columns.tensor("observation/joint_pos", 7), _GRIPPER),
    ),
}
