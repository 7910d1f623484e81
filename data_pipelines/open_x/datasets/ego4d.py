"""Ego4D hand-object clips as UniVLA's builder writes them: action-free human video at 2 Hz.

The builder stores seven zeros as action and as state; here such video has neither. It writes every
clip into the split "val", and takes the first five characters off the narrations.
"""

from data_pipelines.open_x import base

_SPLIT = base.Standard(
    robot="human",
    control_hz=2.0,
    actions=None,
    states=None,
    convention=None,
    pair_offset=(1, 1),
)

STANDARDS = {f"ego4d_split_{number}": _SPLIT for number in range(1, 5)}
