"""Dobb-E: homes seen by the wrist camera of a hand-held Stretch gripper (NYU)."""

from data_pipelines.open_x import base, columns

STANDARDS = {
    "dobbe": base.Standard(
        robot="stretch",
        control_hz=3.75,
        cameras=base.views(primary="wrist_image"),
        actions=(columns.tensor("action", 7),),
        states=(columns.tensor("observation/state", 7),),
        convention=base.UNDOCUMENTED,
        pair_offset=(2, 4),
        doubts=(
            "cameras: the wrist camera stands in for the primary view",
            "motion and gripper: left as stored, not documented",
        ),
    )
}
