"""Bridge V2: table-top tasks of a WidowX arm (Berkeley).

`bridge_dataset` and `bridge_orig` are the RLDS files of the project's own page; `bridge_oxe` is
the Open-X bucket's copy, there called `bridge`. Rules as the official loader applies them
(datasets/rlds/oxe/transforms.py:31-104): the first step of an episode carries no motion and is
dropped; the motion part of an action is relabelled with what the arm reached, state[t+1] -
state[t], so the last step goes too. T raw steps become T - 2.
"""

import dataclasses

import numpy as np

from data_pipelines.open_x import base, columns, gripper
from defi_jax import embodiment

_ACTION = columns.tensor("action", 7)
_STATE = columns.tensor("observation/state", 7)  # xyz, roll, pitch, yaw, gripper


def _relabel(trajectory: base.Trajectory) -> base.Trajectory:
    """Replaces the commanded motion by the reached one, metres and radians, angles not wrapped."""
    states, actions = trajectory.states, trajectory.actions
    assert states is not None and actions is not None
    if len(states) < 3:
        raise ValueError("fewer than three steps, none is left after relabelling")
    motion = np.diff(states[1:, :6], axis=0)
    return dataclasses.replace(
        trajectory,
        kept=trajectory.kept[1:-1],
        actions=np.concatenate([motion, actions[1:-1, 6:]], axis=1),
        states=states[1:-1],
    )


_ORIGINAL = base.Standard(
    robot="widowx250",
    control_hz=5.0,
    cameras=base.views(primary="image_0", secondary="image_1"),
    actions=(_ACTION[:6], _ACTION[6:].within(0, 1).then(gripper.binarize)),
    states=(_STATE[:6], columns.zeros(), _STATE[6:]),
    convention=embodiment.end_effector(units="m and rad per step"),
    finish=_relabel,
)
_OPEN_X = dataclasses.replace(
    _ORIGINAL,
    cameras=base.views(primary="image"),
    actions=(*columns.RT1_MOTION, columns.tensor("action/open_gripper", dtype="bool")),
    language=base.NATURAL_INSTRUCTION,
    doubts=(
        "cameras: the registry's secondary view image_1 is not in the published version 0.1.0",
        "data: the bucket's copy is outdated, prefer bridge_dataset",
    ),
)

STANDARDS = {
    "bridge_dataset": _ORIGINAL,
    "bridge_orig": _ORIGINAL,
    "bridge_oxe": _OPEN_X,
    "bridge": _OPEN_X,
}
