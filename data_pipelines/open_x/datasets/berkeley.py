"""Table tops, cables, assembly and navigation, of many robots (Berkeley)."""

import dataclasses

from data_pipelines.open_x import base, columns, gripper
from defi_jax import embodiment

_FANUC_STATE = columns.tensor("observation/state", 13)  # joints 6, gripper, joint speeds 6
_ROBO_NET_ACTION = columns.tensor("action", 5)  # xyz, one angle, gripper
_ROBO_NET_STATE = columns.tensor("observation/state", 5)
_CLOSED = columns.tensor("observation/gripper", dtype="bool")  # 1 closed

_RECON = base.Standard(  # navigation of mobile robots
    robot="jackal",
    control_hz=3.0,
    cameras=base.views(primary="image", wrist="image"),  # one camera, officially both views
    actions=(columns.tensor("action", 2, dtype="float64"), columns.zeros(5)),
    states=(
        columns.tensor("observation/position", 2, dtype="float64"),
        columns.zeros(3),
        columns.tensor("observation/yaw", 1, dtype="float64"),
        columns.zeros(2),
    ),
    convention=embodiment.end_effector(motion="waypoint", rotation="none", gripper="none"),
)
_MVP = base.Standard(  # wrist-camera tasks commanded in joint space
    robot="xarm",
    control_hz=5.0,
    cameras=base.views(wrist="hand_image"),
    actions=(columns.tensor("action", 8),),
    states=(columns.tensor("observation/pose", 7), _CLOSED),
    convention=embodiment.joints(motion="joint delta", gripper=embodiment.UNKNOWN),
    doubts=("gripper: a binary command left as stored, the state's is 1 closed",),
)
_FMB = base.Standard(  # Functional Manipulation Benchmark: assembly
    robot="franka",
    control_hz=10.0,
    cameras=base.views(primary="image_side_1", secondary="image_side_2", wrist="image_wrist_1"),
    actions=(columns.tensor("action", 7),),
    states=(
        columns.tensor("observation/eef_pose", 7),
        columns.tensor("observation/state_gripper_pose"),
    ),
    convention=base.UNDOCUMENTED,
    doubts=(
        "state: xyz and quaternion, though the registry says Euler",
        "motion and gripper: left as stored, not documented",
    ),
)

STANDARDS = {
    "berkeley_autolab_ur5": base.Standard(
        robot="ur5",
        control_hz=5.0,
        cameras=base.views(primary="image", wrist="hand_image"),
        actions=(*columns.RT1_MOTION, columns.rt1_closedness().then(gripper.relative_to_absolute)),
        states=(columns.tensor("observation/robot_state", 15)[6:14],),
        language=base.NATURAL_INSTRUCTION,
        pair_offset=(2, 4),
        doubts=(base.BGR_WRIST,),
    ),
    "berkeley_cable_routing": base.Standard(
        robot="franka",
        control_hz=10.0,
        cameras=base.views(primary="image", secondary="top_image", wrist="wrist45_image"),
        actions=(*columns.RT1_MOTION, columns.zeros()),  # there is no gripper
        states=(columns.tensor("observation/robot_state", 7), columns.zeros()),
        convention=embodiment.end_effector(motion="velocity", gripper="none"),
        language=base.NATURAL_INSTRUCTION,
        doubts=("motion: velocities, though the registry calls them deltas",),
    ),
    "berkeley_fanuc_manipulation": base.Standard(
        robot="fanuc_mate",
        control_hz=10.0,
        cameras=base.views(primary="image", wrist="wrist_image"),
        # No command is stored for the gripper: its state stands in.
        actions=(columns.tensor("action", 6), _FANUC_STATE[6:7].then(gripper.invert)),
        states=(_FANUC_STATE[:6], columns.zeros(), _FANUC_STATE[6:7]),
        doubts=(
            "gripper sign: the catalogue calls the state an open status, the reference inverts it",
            base.BGR_ALL,
        ),
    ),
    "berkeley_gnm_recon": _RECON,
    "berkeley_gnm_cory_hall": dataclasses.replace(_RECON, robot="rc_car", control_hz=5.0),
    "berkeley_gnm_sac_son": dataclasses.replace(_RECON, robot="turtlebot2", control_hz=10.0),
    "berkeley_mvp_converted_externally_to_rlds": _MVP,
    "berkeley_rpt_converted_externally_to_rlds": dataclasses.replace(
        _MVP,
        robot="franka",
        control_hz=30.0,
        states=(columns.tensor("observation/joint_pos", 7), _CLOSED),
    ),
    "fmb": _FMB,
    "fmb_dataset": _FMB,  # Octo and OpenVLA use this name
    "robo_net": base.Standard(  # random interaction; with other laboratories
        robot="several_arms",
        control_hz=1.0,
        cameras=base.views(primary="image", secondary="image1"),
        actions=(_ROBO_NET_ACTION[:4], columns.zeros(2), _ROBO_NET_ACTION[4:]),
        states=(_ROBO_NET_STATE[:4], columns.zeros(3), _ROBO_NET_STATE[4:]),
        convention=embodiment.end_effector(
            rotation="one angle in the place of roll", gripper=embodiment.UNKNOWN
        ),
        doubts=(
            "rotation: the only angle stands where others have roll",
            "gripper: left as stored, by the builder 1 above the middle of its range, else -1",
        ),
    ),
}
