"""Play data of a Franka arm (CMU)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_ACTION = columns.tensor("action", 9)  # delta xyz, delta quaternion, gripper, terminate

STANDARDS = {
    "cmu_play_fusion": base.Standard(
        robot="franka",
        control_hz=5.0,
        actions=(_ACTION[:3], _ACTION[5:]),
        states=(columns.tensor("observation/state", 8),),
        convention=embodiment.end_effector(
            rotation="two parts of a quaternion and the gripper", gripper="the terminate flag"
        ),
        doubts=(
            "action: the reference takes the last four numbers, so that half of the quaternion "
            "and the gripper stand for a rotation and the terminate flag for the gripper",
        ),
    )
}
