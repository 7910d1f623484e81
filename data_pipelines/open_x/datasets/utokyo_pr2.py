"""Opening a fridge and table-top tasks with a PR2 (University of Tokyo)."""

from data_pipelines.open_x import base, columns

_STATE = columns.tensor("observation/state", 7)

_PR2 = base.Standard(
    robot="pr2",
    control_hz=10.0,
    actions=(columns.tensor("action", 8)[:7],),  # the last is the terminate flag
    states=(_STATE[:6], columns.zeros(), _STATE[6:]),
    convention=base.UNDOCUMENTED,
    doubts=base.POSE_AS_STORED,
)

STANDARDS = {
    "utokyo_pr2_opening_fridge_converted_externally_to_rlds": _PR2,
    "utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds": _PR2,
}
