"""HYDRA: long table-top tasks of a Franka arm (Stanford)."""

from data_pipelines.open_x import base, columns, gripper

_ACTION = columns.tensor("action", 7)
_STATE = columns.tensor("observation/state", 27)  # xyz, quaternion, Euler, joints, speeds, gripper

STANDARDS = {
    "stanford_hydra_dataset_converted_externally_to_rlds": base.Standard(
        robot="franka",
        control_hz=10.0,
        cameras=base.views(primary="image", wrist="wrist_image"),
        actions=(_ACTION[:6], _ACTION[6:].then(gripper.invert)),
        states=(_STATE[:3], _STATE[7:10], columns.zeros(), _STATE[24:25]),
        doubts=(base.BGR_ALL,),
    )
}
