"""Pouring, grid clamping and shared control (DLR, the German Aerospace Center)."""

import dataclasses

from data_pipelines.open_x import base, columns, gripper
from defi_jax import embodiment

_ACTION = columns.tensor("action", 7)
_ROTATION = "euler zxy"
_DOUBTS = ("rotation: Euler angles are zxy, left as stored",)

_SARA = base.Standard(
    robot="dlr_sara",
    control_hz=10.0,
    actions=(_ACTION,),
    states=(columns.tensor("observation/state", 6), columns.zeros(2)),
    convention=embodiment.end_effector(
        motion=embodiment.UNKNOWN, rotation=_ROTATION, gripper=embodiment.UNKNOWN
    ),
    doubts=(*_DOUBTS, base.GRIPPER_AS_STORED),
)

STANDARDS = {
    "dlr_sara_pour_converted_externally_to_rlds": _SARA,
    "dlr_sara_grid_clamp_converted_externally_to_rlds": dataclasses.replace(
        _SARA,
        states=(columns.tensor("observation/state", 12)[:6], columns.zeros(2)),  # no wrench
    ),
    "dlr_edan_shared_control_converted_externally_to_rlds": base.Standard(
        robot="dlr_edan",
        control_hz=5.0,
        actions=(_ACTION[:6], _ACTION[6:].then(gripper.invert)),
        states=(columns.tensor("observation/state", 7), columns.zeros()),
        convention=embodiment.end_effector(motion=embodiment.UNKNOWN, rotation=_ROTATION),
        pair_offset=(2, 4),
        doubts=_DOUBTS,
    ),
}
