"""Kitchen tasks of a Franka arm (UT Austin)."""

from data_pipelines.open_x import base, columns, gripper

STANDARDS = {
    "viola": base.Standard(
        robot="franka",
        control_hz=20.0,
        cameras=base.views(primary="agentview_rgb", wrist="eye_in_hand_rgb"),
        actions=(*columns.RT1_MOTION, columns.rt1_closedness().then(gripper.clip, gripper.invert)),
        states=(
            columns.tensor("observation/joint_states", 7),
            columns.tensor("observation/gripper_states", 1),
        ),
        language=base.NATURAL_INSTRUCTION,
        pair_offset=(14, 19),
    )
}
