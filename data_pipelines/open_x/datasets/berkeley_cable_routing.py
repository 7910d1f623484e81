"""Routing a cable through clips with a Franka arm (Berkeley)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

STANDARDS = {
    "berkeley_cable_routing": base.Standard(
        robot="franka",
        control_hz=10.0,
        cameras=base.views(primary="image", secondary="top_image", wrist="wrist45_image"),
        actions=(*columns.RT1_MOTION, columns.zeros()),  # there is no gripper
        states=(columns.tensor("observation/robot_state", 7), columns.zeros()),
        convention=embodiment.end_effector(motion="velocity", gripper="none"),
        language=base.NATURAL_INSTRUCTION,
        doubts=("motion: velocities, though the registry calls them deltas",),
    )
}
