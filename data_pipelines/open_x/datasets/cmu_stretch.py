"""Household tasks of a Stretch (CMU)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_STATE = columns.tensor("observation/state", 4)

STANDARDS = {
    "cmu_stretch": base.Standard(
        robot="stretch",
        control_hz=10.0,
        actions=(columns.tensor("action", 8)[:7],),  # the last is the terminate flag
        states=(_STATE[:3], columns.zeros(4), _STATE[3:]),
        convention=embodiment.end_effector(motion=embodiment.UNKNOWN, gripper=embodiment.UNKNOWN),
        doubts=(
            "motion: whether poses are absolute or deltas is not documented",
            "gripper: left as stored, polarity not documented",
        ),
    )
}
