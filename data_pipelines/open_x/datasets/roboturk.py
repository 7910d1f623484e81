"""Teleoperated Sawyer arms, by crowd workers (Stanford)."""

from data_pipelines.open_x import base, columns, gripper

STANDARDS = {
    "roboturk": base.Standard(
        robot="sawyer",
        control_hz=10.0,
        cameras=base.views(primary="front_rgb"),
        actions=(*columns.RT1_MOTION, columns.rt1_closedness(1).then(gripper.clip, gripper.invert)),
        states=(columns.zeros(8),),
        language=base.NATURAL_INSTRUCTION,
    )
}
