"""Pushing objects with a Franka arm (KAIST)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

STANDARDS = {
    "kaist_nonprehensile_converted_externally_to_rlds": base.Standard(
        robot="franka",
        control_hz=10.0,
        actions=(columns.tensor("action", 20)[:6], columns.zeros()),  # gains are left out
        states=(columns.tensor("observation/state", 21)[14:], columns.zeros()),
        convention=embodiment.end_effector(rotation="axis-angle", gripper="none"),
    )
}
