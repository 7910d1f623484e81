"""Picking up and inserting with a Franka arm (CMU)."""

from data_pipelines.open_x import base, columns, rotation
from defi_jax import embodiment

_ACTION = columns.tensor("action", 8)  # xyz, quaternion, gripper
_STATE = columns.tensor("observation/state", 20)

STANDARDS = {
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": base.Standard(
        robot="franka",
        control_hz=20.0,
        cameras=base.views(primary="image", wrist="wrist_image"),
        actions=(_ACTION[:3], _ACTION[3:7].then(rotation.euler_of_quaternion), _ACTION[7:]),
        states=(_STATE[:7], _STATE[7:8]),
        convention=embodiment.end_effector(motion="absolute", gripper=embodiment.UNKNOWN),
        pair_offset=(14, 19),
        doubts=(
            "motion: absolute poses, though the registry calls them deltas",
            base.GRIPPER_AS_STORED,
        ),
    )
}
