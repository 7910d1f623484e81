"""Motion planning with a Cobotta arm (University of Tokyo)."""

from data_pipelines.open_x import base, columns

_STATE = columns.tensor("observation/state", 13)

STANDARDS = {
    "tokyo_u_lsmo_converted_externally_to_rlds": base.Standard(
        robot="cobotta",
        control_hz=10.0,
        actions=(columns.tensor("action", 7),),
        states=(_STATE[:6], columns.zeros(), _STATE[12:]),
        convention=base.UNDOCUMENTED,
        doubts=base.POSE_AS_STORED,
    )
}
