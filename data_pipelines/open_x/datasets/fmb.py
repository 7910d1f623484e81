"""Functional Manipulation Benchmark: assembly with a Franka arm (Berkeley)."""

from data_pipelines.open_x import base, columns

_FMB = base.Standard(
    robot="franka",
    control_hz=10.0,
    cameras=base.views(primary="image_side_1", secondary="image_side_2", wrist="image_wrist_1"),
    actions=(columns.tensor("action", 7),),
    states=(
        columns.tensor("observation/eef_pose", 7),
        columns.tensor("observation/state_gripper_pose"),
    ),
    convention=base.UNDOCUMENTED,
    doubts=(
        "state: xyz and quaternion, though the registry says Euler",
        "motion and gripper: left as stored, not documented",
    ),
)

STANDARDS = {"fmb": _FMB, "fmb_dataset": _FMB}  # Octo and OpenVLA use the second name
