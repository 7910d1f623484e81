"""LIBERO suites, rendered again at 256 pixels and without idle steps (OpenVLA).

The idle steps (no motion and the same gripper command) and failed replays are gone in the files.
The names "mini", "half", "quad" and "combined" are subsets of UniVLA that are not published.
"""

from data_pipelines.open_x import base, columns, gripper
from defi_jax import embodiment

_ACTION = columns.tensor("action", 7)
_STATE = columns.tensor("observation/state", 8)  # xyz, axis-angle, two fingers

_SUITE = base.Standard(
    robot="franka",
    control_hz=20.0,
    cameras=base.views(primary="image", wrist="wrist_image"),
    actions=(_ACTION[:6], _ACTION[6:].within(-1, 1).then(gripper.clip, gripper.invert)),
    states=(_STATE[:6], columns.zeros(), _STATE[6:]),
    convention=embodiment.end_effector(rotation="axis-angle"),
    doubts=("state: 9 wide, axis-angle though the registry says Euler",),
)

_NAMES = (
    "spatial_no_noops",
    "object_no_noops",
    "goal_no_noops",
    "10_no_noops",
    "10_no_noops_mini",
    "goal_no_noops_mini",
    "goal_no_noops_half",
    "10_no_noops_half",
    "goal_no_noops_quad",
    "10_no_noops_quad",
    "combined",
)

STANDARDS = {f"libero_{name}": _SUITE for name in _NAMES}
