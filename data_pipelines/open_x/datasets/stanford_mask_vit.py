"""MaskViT: pushing objects with a Sawyer arm (Stanford)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_ACTION = columns.tensor("action", 5)  # xyz, yaw, gripper
_STATE = columns.tensor("observation/end_effector_pose", 5)

STANDARDS = {
    "stanford_mask_vit_converted_externally_to_rlds": base.Standard(
        robot="sawyer",
        control_hz=1.0,
        actions=(_ACTION[:4], columns.zeros(2), _ACTION[4:]),
        states=(_STATE[:4], columns.zeros(3), _STATE[4:]),
        convention=embodiment.end_effector(
            rotation="yaw in the place of roll", gripper="+1 closes, -1 opens"
        ),
        doubts=(
            "control rate: not published; 1 Hz is written so that seconds count steps",
            "rotation: yaw stands where others have roll",
            "gripper: left as stored, 1 closes and -1 opens, not canonical",
        ),
    )
}
