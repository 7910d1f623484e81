"""What each Open-X dataset must become, written down apart from the code under test.

The notation of actions and states: raw fields with slices, side by side. `A` is "action", `S` is
"observation/state", `o.x` is "observation/x"; `M` is RT-1's "world_vector" and "rotation_delta",
`G` its gripper command; `0*3` are three zeros. Functions are the rules of the same name.

Widths, dropped steps and views were measured by running the reference transforms (DeFI
Step2_GIDM/datasets/rlds/oxe) on made-up trajectories of the published shapes. Where ours differ:
Ego4D's seven zeros are no actions; MVP and RPT fail in the reference for want of an axis.
"""

import re
from typing import NamedTuple

import numpy as np

from data_pipelines.open_x import gripper, rotation

ALIASES = {"bridge": "bridge_oxe", "fmb_dataset": "fmb", "robo_set": "roboset"}
_FUNCTIONS = {
    "clip": gripper.clip,
    "invert": gripper.invert,
    "hold": gripper.relative_to_absolute,
    "binarize": gripper.binarize,
    "euler": rotation.euler_of_quaternion,
}
_SHORT = {"A": "action", "S": "observation/state", "G": "action/gripper_closedness_action"}


class Row(NamedTuple):
    """One dataset; `views` are primary, secondary and wrist, "-" where there is none."""

    views: str
    action: str
    state: str
    action_dim: int | None = 7
    state_dim: int | None = 8
    dropped: int = 0


_POSE = "S[0:6] 0*1 S[6:7]"
_CLOSES = "A[0:6] invert(clip(A[6:7]))"
_GNM = Row("image - image", "A 0*5", "o.position 0*3 o.yaw 0*2")
_EGO = Row("image - -", "", "", None, None)
_LIBERO = Row("image - wrist_image", _CLOSES, "S[0:6] 0*1 S[6:8]", state_dim=9)
_TDROID = Row(
    "static_image - -", "A[0:6] binarize(A[6:7])", "o.cartesian_position 0*1 o.gripper_position"
)
_BRIDGE = Row("image_0 image_1 -", "moved binarize(A[6:7])", _POSE, dropped=2)
_FMB = Row("image_side_1 image_side_2 image_wrist_1", "A", "o.eef_pose o.state_gripper_pose")
_DROID = "action_dict/cartesian_velocity invert(action_dict/gripper_position)"
_PR2 = Row("image - -", "A[0:7]", _POSE)
_EXTERNAL = "_dataset_converted_externally_to_rlds"
_LONG = "_converted_externally_to_rlds"

ROWS = {
    "fractal20220817_data": Row(
        "image - -", "M hold(G)", "o.base_pose_tool_reached o.gripper_closed"
    ),
    "kuka": Row(
        "image - -", "M hold(G)", "o.clip_function_input/base_pose_tool_reached o.gripper_closed"
    ),
    "bridge_oxe": Row("image - -", "moved action/open_gripper", _POSE, dropped=2),
    **{f"ego4d_split_{number}": _EGO for number in (1, 2, 3, 4)},
    "bridge_orig": _BRIDGE,
    "bridge_dataset": _BRIDGE,
    "taco_play": Row(
        "rgb_static - rgb_gripper",
        "action/rel_actions_world[0:6] clip(action/rel_actions_world[6:7])",
        "o.robot_obs[0:6] 0*1 o.robot_obs[7:8]",
    ),
    "jaco_play": Row(
        "image - image_wrist",
        "action/world_vector 0*3 hold(G)",
        "o.end_effector_cartesian_pos[0:6] 0*1 o.end_effector_cartesian_pos[6:7]",
    ),
    "berkeley_cable_routing": Row("image top_image wrist45_image", "M 0*1", "o.robot_state 0*1"),
    "roboturk": Row("front_rgb - -", "M invert(clip(G))", "0*8"),
    "nyu_door_opening_surprising_effectiveness": Row("- - image", "M hold(G)", "0*8"),
    "viola": Row(
        "agentview_rgb - eye_in_hand_rgb", "M invert(clip(G))", "o.joint_states o.gripper_states"
    ),
    "berkeley_autolab_ur5": Row("image - hand_image", "M hold(G)", "o.robot_state[6:14]"),
    "toto": Row("image - -", "M action/open_gripper", "S 0*1"),
    "language_table": Row("rgb - -", "A 0*4 1*1", "o.effector_translation 0*6"),
    "columbia_cairlab_pusht_real": Row("image - wrist_image", "M G", "o.robot_state 0*6"),
    "stanford_kuka_multimodal" + _EXTERNAL: Row(
        "image - -", "A[0:3] 0*3 A[3:4]", "o.ee_position o.ee_orientation 0*1"
    ),
    "nyu_rot" + _EXTERNAL: Row("image - -", "A", _POSE),
    "stanford_hydra" + _EXTERNAL: Row(
        "image - wrist_image", "A[0:6] invert(A[6:7])", "S[0:3] S[7:10] 0*1 S[24:25]"
    ),
    "austin_buds" + _EXTERNAL: Row("image - wrist_image", _CLOSES, "S[0:8]"),
    "nyu_franka_play" + _EXTERNAL: Row(
        "image image_additional_view -", "A[7:13] clip(A[13:14])", "S[7:13] 0*2"
    ),
    "maniskill" + _EXTERNAL: Row("image - wrist_image", "A", "o.tcp_pose S[7:8]"),
    "furniture_bench" + _EXTERNAL: Row(
        "image - wrist_image", "A[0:3] euler(A[3:7]) invert(clip(A[7:8]))", "S[0:7] S[34:35]"
    ),
    "cmu_franka_exploration" + _EXTERNAL: Row("highres_image - -", "A[0:7]", "0*8"),
    "ucsd_kitchen" + _EXTERNAL: Row("image - -", "A[0:7]", "S[0:7] 0*1"),
    "ucsd_pick_and_place" + _EXTERNAL: Row("image - -", "A[0:3] 0*3 A[3:4]", _POSE),
    "austin_sailor" + _EXTERNAL: Row("image - wrist_image", _CLOSES, "S"),
    "austin_sirius" + _EXTERNAL: Row("image - wrist_image", _CLOSES, "S"),
    "bc_z": Row(
        "image - -",
        "action/future/xyz_residual[0:3] action/future/axis_angle_residual[0:3] "
        "invert(action/future/target_close[0:1])",
        "o.present/xyz o.present/axis_angle 0*1 o.present/sensed_close",
    ),
    "utokyo_pr2_opening_fridge" + _LONG: _PR2,
    "utokyo_pr2_tabletop_manipulation" + _LONG: _PR2,
    "utokyo_xarm_pick_and_place" + _LONG: Row(
        "image image2 hand_image", "A", "o.end_effector_pose 0*2"
    ),
    "utokyo_xarm_bimanual" + _LONG: Row("image - -", "A[7:14]", "o.pose_r 0*2"),
    "robo_net": Row("image image1 -", "A[0:4] 0*2 A[4:5]", "S[0:4] 0*3 S[4:5]"),
    "berkeley_mvp" + _LONG: Row("- - hand_image", "A", "o.pose o.gripper", 8),
    "berkeley_rpt" + _LONG: Row("- - hand_image", "A", "o.joint_pos o.gripper", 8),
    "kaist_nonprehensile" + _LONG: Row("image - -", "A[0:6] 0*1", "S[14:21] 0*1"),
    "stanford_mask_vit" + _LONG: Row(
        "image - -", "A[0:4] 0*2 A[4:5]", "o.end_effector_pose[0:4] 0*3 o.end_effector_pose[4:5]"
    ),
    "tokyo_u_lsmo" + _LONG: Row("image - -", "A", "S[0:6] 0*1 S[12:13]"),
    "dlr_sara_pour" + _LONG: Row("image - -", "A", "S 0*2"),
    "dlr_sara_grid_clamp" + _LONG: Row("image - -", "A", "S[0:6] 0*2"),
    "dlr_edan_shared_control" + _LONG: Row("image - -", "A[0:6] invert(A[6:7])", "S 0*1"),
    "asu_table_top" + _LONG: Row("image - -", "A", "ground_truth_states/EE 0*1 S[6:7]"),
    "stanford_robocook" + _LONG: Row("image_1 image_2 -", "A", _POSE),
    "imperialcollege_sawyer_wrist_cam": Row("image - wrist_image", "A[0:7]", "0*7 S"),
    "iamlab_cmu_pickup_insert" + _LONG: Row(
        "image - wrist_image", "A[0:3] euler(A[3:7]) A[7:8]", "S[0:8]"
    ),
    "uiuc_d3field": Row("image_1 image_2 -", "A 0*4", "0*8"),
    "utaustin_mutex": Row("image - wrist_image", _CLOSES, "S[0:8]"),
    "berkeley_fanuc_manipulation": Row(
        "image - wrist_image", "A invert(S[6:7])", "S[0:6] 0*1 S[6:7]"
    ),
    "cmu_playing_with_food": Row("image - finger_vision_1", "A[0:3] euler(A[3:7]) A[7:8]", "S 0*2"),
    "cmu_play_fusion": Row("image - -", "A[0:3] A[5:9]", "S"),
    "cmu_stretch": Row("image - -", "A[0:7]", "S[0:3] 0*4 S[3:4]"),
    "berkeley_gnm_recon": _GNM,
    "berkeley_gnm_cory_hall": _GNM,
    "berkeley_gnm_sac_son": _GNM,
    "droid": Row(
        "exterior_image_1_left exterior_image_2_left wrist_image_left",
        _DROID,
        "o.cartesian_position o.gripper_position",
        state_dim=7,
    ),
    "fmb": _FMB,
    "dobbe": Row("wrist_image - -", "A", "S", state_dim=7),
    "roboset": Row("image_left image_right image_wrist", "A[0:7] invert(clip(A[7:8]))", "S", 8),
    "rh20t": Row(
        "image_front image_side_right image_wrist",
        "action/tcp_base action/gripper",
        "o.tcp_base o.gripper_width",
        state_dim=7,
    ),
    "tdroid_carrot_in_bowl": _TDROID,
    "tdroid_pour_corn_in_pot": _TDROID,
    "tdroid_flip_pot_upright": _TDROID,
    "tdroid_move_object_onto_plate": _TDROID,
    "tdroid_knock_object_over": _TDROID,
    "tdroid_cover_object_with_towel": _TDROID,
    "droid_wipe": Row(
        "exterior_image_2_left - wrist_image_left",
        _DROID,
        "o.cartesian_position o.gripper_position",
        state_dim=7,
    ),
    "libero_spatial_no_noops": _LIBERO,
    "libero_object_no_noops": _LIBERO,
    "libero_goal_no_noops": _LIBERO,
    "libero_10_no_noops": _LIBERO,
    "libero_10_no_noops_mini": _LIBERO,
    "libero_goal_no_noops_mini": _LIBERO,
    "libero_goal_no_noops_half": _LIBERO,
    "libero_10_no_noops_half": _LIBERO,
    "libero_goal_no_noops_quad": _LIBERO,
    "libero_10_no_noops_quad": _LIBERO,
    "libero_combined": _LIBERO,
}


def evaluate(notation: str, steps: dict) -> np.ndarray:
    """Returns the columns of a notation, float32[T, k], of raw field -> T values."""
    notation = re.sub(r"\bM\b", "action/world_vector action/rotation_delta", notation)
    found = [_token(token, steps) for token in notation.split()]
    return np.concatenate(found, axis=1)


def _token(token: str, steps: dict) -> np.ndarray:
    if match := re.fullmatch(r"(\w+)\((.*)\)", token):
        return _FUNCTIONS[match[1]](_token(match[2], steps))
    if match := re.fullmatch(r"([01])\*(\d)", token):
        num_steps = len(next(iter(steps.values())))
        return np.full((num_steps, int(match[2])), float(match[1]), np.float32)
    if token == "moved":  # of Bridge: reached motion, the last row is dropped with its step
        return np.diff(steps["observation/state"], axis=0, append=0)[:, :6]
    name, start, stop = re.fullmatch(r"([\w./]+)(?:\[(\d+):(\d+)\])?", token).groups()
    values = steps[_SHORT.get(name, name.replace("o.", "observation/"))]
    values = values.reshape(len(values), -1).astype(np.float32)
    assert stop is None or int(stop) <= values.shape[1]
    return values if stop is None else values[:, int(start) : int(stop)]
