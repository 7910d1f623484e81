"""Everyday tasks of a Sawyer arm with a wrist camera (Imperial)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

STANDARDS = {
    "imperialcollege_sawyer_wrist_cam": base.Standard(
        robot="sawyer",
        control_hz=10.0,
        cameras=base.views(primary="image", wrist="wrist_image"),
        actions=(columns.tensor("action", 8)[:7],),  # the last is the terminate flag
        states=(columns.zeros(7), columns.tensor("observation/state", 1)),
        convention=embodiment.end_effector(
            frame="end effector", rotation="euler zyx", gripper=embodiment.UNKNOWN
        ),
        doubts=("cameras: both views show the wrist camera's image", base.GRIPPER_AS_STORED),
    )
}
