"""Table-top tasks of a UR5 (Berkeley AUTOLab)."""

from data_pipelines.open_x import base, columns, gripper

STANDARDS = {
    "berkeley_autolab_ur5": base.Standard(
        robot="ur5",
        control_hz=5.0,
        cameras=base.views(primary="image", wrist="hand_image"),
        actions=(*columns.RT1_MOTION, columns.rt1_closedness().then(gripper.relative_to_absolute)),
        states=(columns.tensor("observation/robot_state", 15)[6:14],),
        language=base.NATURAL_INSTRUCTION,
        pair_offset=(2, 4),
        doubts=(base.BGR_WRIST,),
    )
}
