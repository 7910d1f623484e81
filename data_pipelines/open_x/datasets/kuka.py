"""QT-Opt: bin picking with Kuka iiwa arms (Google). Only successful episodes are kept."""

from data_pipelines.open_x import base, columns

STANDARDS = {
    "kuka": base.Standard(
        robot="kuka_iiwa",
        control_hz=10.0,
        actions=base.RT1_ACTIONS,
        states=(  # stored zlib-compressed in the published files
            columns.tensor("observation/clip_function_input/base_pose_tool_reached", 7),
            columns.tensor("observation/gripper_closed", 1),
        ),
        language=base.NATURAL_INSTRUCTION,
        success_flag="success",
        doubts=("the state's gripper is 1 closed, the action's 1 open",),
    )
}
