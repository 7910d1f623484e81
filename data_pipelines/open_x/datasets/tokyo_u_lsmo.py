"""Motion planning with a Cobotta arm (University of Tokyo)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_STATE = columns.tensor("observation/state", 13)

STANDARDS = {
    "tokyo_u_lsmo_converted_externally_to_rlds": base.Standard(
        robot="cobotta",
        control_hz=10.0,
        actions=(columns.tensor("action", 7),),
        states=(_STATE[:6], columns.zeros(), _STATE[12:]),
        convention=embodiment.end_effector(motion=embodiment.UNKNOWN, gripper=embodiment.UNKNOWN),
        doubts=(
            "motion: whether poses are absolute or deltas is not documented",
            "gripper: left as stored, polarity not documented",
        ),
    )
}
