"""Opening a fridge and table-top tasks with a PR2 (University of Tokyo)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_STATE = columns.tensor("observation/state", 7)

_PR2 = base.Standard(
    robot="pr2",
    control_hz=10.0,
    actions=(columns.tensor("action", 8)[:7],),  # the last is the terminate flag
    states=(_STATE[:6], columns.zeros(), _STATE[6:]),
    convention=embodiment.end_effector(motion=embodiment.UNKNOWN, gripper=embodiment.UNKNOWN),
    doubts=(
        "motion: whether poses are absolute or deltas is not documented",
        "gripper: left as stored, polarity not documented",
    ),
)

STANDARDS = {
    "utokyo_pr2_opening_fridge_converted_externally_to_rlds": _PR2,
    "utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds": _PR2,
}
