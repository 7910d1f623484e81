"""Play data of a Franka arm with blocks, drawers and lights (Freiburg)."""

from data_pipelines.open_x import base, columns, gripper
from defi_jax import embodiment

_ACTION = columns.tensor("action/rel_actions_world", 7)
_STATE = columns.tensor("observation/robot_obs", 15)

STANDARDS = {
    "taco_play": base.Standard(
        robot="franka",
        control_hz=15.0,
        cameras=base.views(primary="rgb_static", wrist="rgb_gripper"),
        actions=(_ACTION[:6], _ACTION[6:].within(-1, 1).then(gripper.clip)),
        states=(_STATE[:6], columns.zeros(), _STATE[7:8]),
        convention=embodiment.end_effector(frame="world"),
        language=base.NATURAL_INSTRUCTION,
        doubts=(
            "gripper sign: the catalogue says -1 opens and 1 closes, the reference takes 1 as open",
            "rotation: the catalogue says yaw, pitch, roll; used as stored",
            "state: index 7, taken as the gripper, is the first joint; the gripper's width is 6",
        ),
    )
}
