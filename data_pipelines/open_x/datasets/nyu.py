"""Doors, homes, a toy kitchen and table tops (NYU)."""

from data_pipelines.open_x import base, columns, gripper
from defi_jax import embodiment

_PLAY_ACTION = columns.tensor("action", 15)  # joint speeds 7, delta pose 6, gripper, terminate
_PLAY_STATE = columns.tensor("observation/state", 13)
_ROT_STATE = columns.tensor("observation/state", 7)

STANDARDS = {
    "nyu_door_opening_surprising_effectiveness": base.Standard(  # the wrist camera alone
        robot="stretch",
        control_hz=3.0,
        cameras=base.views(wrist="image"),
        actions=base.RT1_ACTIONS,
        states=(columns.zeros(8),),
        convention=embodiment.end_effector(motion="velocity"),
        language=base.NATURAL_INSTRUCTION,
        doubts=("motion: velocities, though the registry calls them deltas",),
    ),
    "nyu_franka_play_dataset_converted_externally_to_rlds": base.Standard(
        robot="franka",
        control_hz=3.0,
        cameras=base.views(primary="image", secondary="image_additional_view"),
        actions=(_PLAY_ACTION[7:13], _PLAY_ACTION[13:14].within(-1, 1).then(gripper.clip)),
        states=(_PLAY_STATE[7:], columns.zeros(2)),
        pair_offset=(2, 4),
        doubts=("gripper: taken as 1 opens, which the catalogue does not say",),
    ),
    "nyu_rot_dataset_converted_externally_to_rlds": base.Standard(
        robot="xarm",
        control_hz=3.0,
        actions=(columns.tensor("action", 7),),
        states=(_ROT_STATE[:6], columns.zeros(), _ROT_STATE[6:]),
        convention=embodiment.end_effector(gripper="1 closes, 0 opens"),
        doubts=("gripper: left as stored, 1 closes, opposite to the canonical sign",),
    ),
    "dobbe": base.Standard(  # Dobb-E: homes seen by a hand-held Stretch gripper
        robot="stretch",
        control_hz=3.75,
        cameras=base.views(primary="wrist_image"),
        actions=(columns.tensor("action", 7),),
        states=(columns.tensor("observation/state", 7),),
        convention=base.UNDOCUMENTED,
        pair_offset=(2, 4),
        doubts=(
            "cameras: the wrist camera stands in for the primary view",
            "motion and gripper: left as stored, not documented",
        ),
    ),
}
