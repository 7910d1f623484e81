"""Play data of a Franka arm in a toy kitchen (NYU)."""

from data_pipelines.open_x import base, columns, gripper

_ACTION = columns.tensor("action", 15)  # joint speeds 7, delta pose 6, gripper, terminate
_STATE = columns.tensor("observation/state", 13)

STANDARDS = {
    "nyu_franka_play_dataset_converted_externally_to_rlds": base.Standard(
        robot="franka",
        control_hz=3.0,
        cameras=base.views(primary="image", secondary="image_additional_view"),
        actions=(_ACTION[7:13], _ACTION[13:14].within(-1, 1).then(gripper.clip)),
        states=(_STATE[7:], columns.zeros(2)),
        pair_offset=(2, 4),
        doubts=("gripper: taken as 1 opens, which the catalogue does not say",),
    )
}
