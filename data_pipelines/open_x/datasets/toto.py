"""Scooping and pouring with a Franka arm (CMU, Train Offline Test Online)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

STANDARDS = {
    "toto": base.Standard(
        robot="franka",
        control_hz=30.0,
        cameras=base.views(primary="image"),
        actions=(*columns.RT1_MOTION, columns.tensor("action/open_gripper", dtype="bool")),
        states=(columns.tensor("observation/state", 7), columns.zeros()),
        convention=embodiment.end_effector(),
        language=base.NATURAL_INSTRUCTION,
        pair_offset=(14, 19),  # in both official lists, slow and fast; the fast one wins
    )
}
