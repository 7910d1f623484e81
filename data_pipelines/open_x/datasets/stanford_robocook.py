"""RoboCook: shaping dough with a Franka arm (Stanford)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_STATE = columns.tensor("observation/state", 7)

STANDARDS = {
    "stanford_robocook_converted_externally_to_rlds": base.Standard(
        robot="franka",
        control_hz=5.0,
        cameras=base.views(primary="image_1", secondary="image_2"),
        actions=(columns.tensor("action", 7),),
        states=(_STATE[:6], columns.zeros(), _STATE[6:]),
        convention=embodiment.end_effector(
            motion="velocity", rotation="angular velocity", gripper="a velocity"
        ),
        doubts=("motion: velocities of hand and gripper, though the registry calls them deltas",),
    )
}
