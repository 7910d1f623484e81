"""Table tops, peg insertion, pushing, dough and teleoperation by crowd workers (Stanford)."""

from data_pipelines.open_x import base, columns, gripper
from defi_jax import embodiment

_ACTION = columns.tensor("action", 7)
_HYDRA_STATE = columns.tensor("observation/state", 27)  # pose, Euler, joints, speeds, gripper
_INSERTION = columns.tensor("action", 4)
_PUSH = columns.tensor("action", 5)  # xyz, yaw, gripper
_PUSH_STATE = columns.tensor("observation/end_effector_pose", 5)
_COOK_STATE = columns.tensor("observation/state", 7)

STANDARDS = {
    "stanford_hydra_dataset_converted_externally_to_rlds": base.Standard(
        robot="franka",
        control_hz=10.0,
        cameras=base.views(primary="image", wrist="wrist_image"),
        actions=(_ACTION[:6], _ACTION[6:].then(gripper.invert)),
        states=(_HYDRA_STATE[:3], _HYDRA_STATE[7:10], columns.zeros(), _HYDRA_STATE[24:25]),
        doubts=(base.BGR_ALL,),
    ),
    "stanford_kuka_multimodal_dataset_converted_externally_to_rlds": base.Standard(
        robot="kuka_iiwa",
        control_hz=20.0,
        actions=(_INSERTION[:3], columns.zeros(3), _INSERTION[3:]),
        states=(
            columns.tensor("observation/ee_position", 3),
            columns.tensor("observation/ee_orientation", 4),
            columns.zeros(),
        ),
        convention=embodiment.end_effector(
            motion=embodiment.UNKNOWN, rotation="none", gripper=embodiment.UNKNOWN
        ),
        doubts=(base.GRIPPER_AS_STORED,),
    ),
    "stanford_mask_vit_converted_externally_to_rlds": base.Standard(
        robot="sawyer",
        control_hz=1.0,
        actions=(_PUSH[:4], columns.zeros(2), _PUSH[4:]),
        states=(_PUSH_STATE[:4], columns.zeros(3), _PUSH_STATE[4:]),
        convention=embodiment.end_effector(
            rotation="yaw in the place of roll", gripper="+1 closes, -1 opens"
        ),
        doubts=(
            "control rate: not published; 1 Hz is written so that seconds count steps",
            "rotation: yaw stands where others have roll",
            "gripper: left as stored, 1 closes and -1 opens, not canonical",
        ),
    ),
    "stanford_robocook_converted_externally_to_rlds": base.Standard(
        robot="franka",
        control_hz=5.0,
        cameras=base.views(primary="image_1", secondary="image_2"),
        actions=(_ACTION,),
        states=(_COOK_STATE[:6], columns.zeros(), _COOK_STATE[6:]),
        convention=embodiment.end_effector(
            motion="velocity", rotation="angular velocity", gripper="a velocity"
        ),
        doubts=("motion: velocities of hand and gripper, though the registry calls them deltas",),
    ),
    "roboturk": base.Standard(  # teleoperated by crowd workers
        robot="sawyer",
        control_hz=10.0,
        cameras=base.views(primary="front_rgb"),
        actions=(*columns.RT1_MOTION, columns.rt1_closedness(1).then(gripper.clip, gripper.invert)),
        states=(columns.zeros(8),),
        language=base.NATURAL_INSTRUCTION,
    ),
}
