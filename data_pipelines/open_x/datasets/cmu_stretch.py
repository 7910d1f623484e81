"""Household tasks of a Stretch (CMU)."""

from data_pipelines.open_x import base, columns

_STATE = columns.tensor("observation/state", 4)

STANDARDS = {
    "cmu_stretch": base.Standard(
        robot="stretch",
        control_hz=10.0,
        actions=(columns.tensor("action", 8)[:7],),  # the last is the terminate flag
        states=(_STATE[:3], columns.zeros(4), _STATE[3:]),
        convention=base.UNDOCUMENTED,
        doubts=base.POSE_AS_STORED,
    )
}
