"""ROT: table-top tasks of an xArm (NYU)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_STATE = columns.tensor("observation/state", 7)

STANDARDS = {
    "nyu_rot_dataset_converted_externally_to_rlds": base.Standard(
        robot="xarm",
        control_hz=3.0,
        actions=(columns.tensor("action", 7),),
        states=(_STATE[:6], columns.zeros(), _STATE[6:]),
        convention=embodiment.end_effector(gripper="1 closes, 0 opens"),
        doubts=("gripper: left as stored, 1 closes, opposite to the canonical sign",),
    )
}
