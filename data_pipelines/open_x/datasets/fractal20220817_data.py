"""RT-1: kitchen tasks of the Everyday Robots arm (Google)."""

from data_pipelines.open_x import base, columns

STANDARDS = {
    "fractal20220817_data": base.Standard(
        robot="google_robot",
        control_hz=3.0,
        actions=base.RT1_ACTIONS,
        states=(
            columns.tensor("observation/base_pose_tool_reached", 7),
            columns.tensor("observation/gripper_closed", 1),
        ),
        language=base.NATURAL_INSTRUCTION,
        pair_offset=(2, 4),
        doubts=("the state's gripper is 1 closed, the action's 1 open",),
    )
}
