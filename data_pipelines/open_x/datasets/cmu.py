"""Toy kitchens, food, households and insertion, mostly with a Franka arm (CMU)."""

from data_pipelines.open_x import base, columns, gripper, rotation
from defi_jax import embodiment

_FUSION = columns.tensor("action", 9)  # delta xyz, delta quaternion, gripper, terminate
_POSE = columns.tensor("action", 8)  # xyz, quaternion, gripper
_EULER_POSE = (_POSE[:3], _POSE[3:7].then(rotation.euler_of_quaternion), _POSE[7:])
_STRETCH_STATE = columns.tensor("observation/state", 4)
_IAMLAB_STATE = columns.tensor("observation/state", 20)
_JOINTS = columns.tensor("action", 8)

_ROBOSET = base.Standard(  # kitchen tasks, commanded in joint space
    robot="franka",
    control_hz=5.0,
    cameras=base.views(primary="image_left", secondary="image_right", wrist="image_wrist"),
    actions=(_JOINTS[:7], _JOINTS[7:].within(-1, 1).then(gripper.clip, gripper.invert)),
    states=(columns.tensor("observation/state", 8),),
    convention=embodiment.joints(),
    doubts=(
        "action: joints, though the official registry calls it a pose and so cannot load it",
        "motion: whether joint commands are absolute is not documented",
    ),
)

STANDARDS = {
    "cmu_franka_exploration_dataset_converted_externally_to_rlds": base.Standard(
        robot="franka",
        control_hz=10.0,
        cameras=base.views(primary="highres_image"),
        actions=(columns.tensor("action", 8)[:7],),  # the last is the terminate flag
        states=(columns.zeros(8),),
        convention=base.UNDOCUMENTED,
        doubts=(base.GRIPPER_AS_STORED,),
    ),
    "cmu_play_fusion": base.Standard(
        robot="franka",
        control_hz=5.0,
        actions=(_FUSION[:3], _FUSION[5:]),
        states=(columns.tensor("observation/state", 8),),
        convention=embodiment.end_effector(
            rotation="two parts of a quaternion and the gripper", gripper="the terminate flag"
        ),
        doubts=(
            "action: the reference takes the last four numbers, so that half of the quaternion "
            "and the gripper stand for a rotation and the terminate flag for the gripper",
        ),
    ),
    "cmu_playing_with_food": base.Standard(
        robot="franka",
        control_hz=10.0,
        cameras=base.views(primary="image", wrist="finger_vision_1"),
        actions=_EULER_POSE,
        states=(columns.tensor("observation/state", 6), columns.zeros(2)),
        convention=base.UNDOCUMENTED,
        doubts=(
            "state: force and torque, though the registry calls it a pose",
            *base.POSE_AS_STORED,
        ),
    ),
    "cmu_stretch": base.Standard(
        robot="stretch",
        control_hz=10.0,
        actions=(columns.tensor("action", 8)[:7],),  # the last is the terminate flag
        states=(_STRETCH_STATE[:3], columns.zeros(4), _STRETCH_STATE[3:]),
        convention=base.UNDOCUMENTED,
        doubts=base.POSE_AS_STORED,
    ),
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": base.Standard(
        robot="franka",
        control_hz=20.0,
        cameras=base.views(primary="image", wrist="wrist_image"),
        actions=_EULER_POSE,
        states=(_IAMLAB_STATE[:7], _IAMLAB_STATE[7:8]),
        convention=embodiment.end_effector(motion="absolute", gripper=embodiment.UNKNOWN),
        pair_offset=(14, 19),
        doubts=(
            "motion: absolute poses, though the registry calls them deltas",
            base.GRIPPER_AS_STORED,
        ),
    ),
    "roboset": _ROBOSET,
    "robo_set": _ROBOSET,  # the catalogue uses this name
    "toto": base.Standard(  # Train Offline Test Online: scooping and pouring
        robot="franka",
        control_hz=30.0,
        actions=(*columns.RT1_MOTION, columns.tensor("action/open_gripper", dtype="bool")),
        states=(columns.tensor("observation/state", 7), columns.zeros()),
        language=base.NATURAL_INSTRUCTION,
        pair_offset=(14, 19),  # in both official lists, slow and fast; the fast one wins
    ),
}
