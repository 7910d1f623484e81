"""Scooping and pouring with a Franka arm (CMU, Train Offline Test Online)."""

from data_pipelines.open_x import base, columns

STANDARDS = {
    "toto": base.Standard(
        robot="franka",
        control_hz=30.0,
        actions=(*columns.RT1_MOTION, columns.tensor("action/open_gripper", dtype="bool")),
        states=(columns.tensor("observation/state", 7), columns.zeros()),
        language=base.NATURAL_INSTRUCTION,
        pair_offset=(14, 19),  # in both official lists, slow and fast; the fast one wins
    )
}
