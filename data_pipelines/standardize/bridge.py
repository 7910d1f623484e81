"""Bridge V2 (WidowX 250, RLDS of the project's own page: `bridge_dataset`, `bridge_orig`).

Rules as the official loader applies them (datasets/rlds/oxe/transforms.py:64): the first step of
an episode carries no motion and is dropped; the motion part of an action is relabelled with what
the arm reached, state[t+1] - state[t], so the last step goes too; the gripper column is binarised.
T raw steps become T - 2.
"""

from __future__ import annotations

import numpy as np

from data_pipelines.standardize import base, gripper


def _standardize(steps: base.Steps) -> base.Trajectory:
    states = np.asarray(steps["observation/state"], np.float32)[1:]  # [T-1, 7]: xyz, rpy, gripper
    commands = np.asarray(steps["action"], np.float32)[1:]
    if len(states) < 2:
        raise ValueError("fewer than three steps, none is left after relabelling")
    motion = np.diff(states[:, :6], axis=0)  # metres and radians; angles are not wrapped
    opening = gripper.binarize(commands[:, -1])  # over all steps: the last one decides earlier ones
    padding = np.zeros((len(states), 1), np.float32)
    proprio = np.concatenate([states[:, :6], padding, states[:, -1:]], axis=1)
    return base.Trajectory(
        kept=range(1, len(states)),
        actions=np.concatenate([motion, opening[:-1, None]], axis=1),
        states=proprio[:-1],
        instructions=base.first_text(steps["language_instruction"]),
    )


STANDARD = base.Standard(
    embodiment="widowx250",
    fps=5.0,
    cameras={"static": "observation/image_0"},
    fields={
        "action": base.Field(kind="tensor", shape=(7,)),
        "observation/state": base.Field(kind="tensor", shape=(7,)),
        "observation/image_0": base.Field(kind="image"),
        "language_instruction": base.Field(kind="text"),
    },
    standardize=_standardize,
)
