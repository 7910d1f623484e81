"""RT-1, QT-Opt, BC-Z and Language-Table: kitchens, bins and table tops (Google)."""

import numpy as np

from data_pipelines.open_x import base, columns, gripper
from defi_jax import embodiment

_CLOSED = columns.tensor("action/future/target_close", 10, dtype="int64")
_DOUBTS = ("the state's gripper is 1 closed, the action's 1 open",)


def _code_points(values: np.ndarray) -> tuple[str, ...]:
    """Returns the text of int32[T, 512], code points up to the first 0.

    Raises:
        ValueError: a number is no code point.
    """
    text = "".join(chr(code) for code in values[0]) if len(values) else ""
    return (text.partition("\0")[0].strip(),)


STANDARDS = {
    "fractal20220817_data": base.Standard(  # RT-1: kitchen tasks of the Everyday Robots arm
        robot="google_robot",
        control_hz=3.0,
        actions=base.RT1_ACTIONS,
        states=(
            columns.tensor("observation/base_pose_tool_reached", 7),
            columns.tensor("observation/gripper_closed", 1),
        ),
        language=base.NATURAL_INSTRUCTION,
        pair_offset=(2, 4),
        doubts=_DOUBTS,
    ),
    "kuka": base.Standard(  # QT-Opt: bin picking with Kuka iiwa arms
        robot="kuka_iiwa",
        control_hz=10.0,
        actions=base.RT1_ACTIONS,
        states=(  # stored zlib-compressed in the published files
            columns.tensor("observation/clip_function_input/base_pose_tool_reached", 7),
            columns.tensor("observation/gripper_closed", 1),
        ),
        language=base.NATURAL_INSTRUCTION,
        success_flag="success",
        doubts=_DOUBTS,
    ),
    "bc_z": base.Standard(  # table-top tasks of the Everyday Robots arm
        robot="google_robot",
        control_hz=10.0,
        actions=(  # the first of ten future waypoints
            columns.tensor("action/future/xyz_residual", 30)[:3],
            columns.tensor("action/future/axis_angle_residual", 30)[:3],
            _CLOSED[:1].within(0, 1).then(gripper.invert),
        ),
        states=(
            columns.tensor("observation/present/xyz", 3),
            columns.tensor("observation/present/axis_angle", 3),
            columns.zeros(),
            columns.tensor("observation/present/sensed_close", 1),
        ),
        convention=embodiment.end_effector(rotation="axis-angle"),
        language=base.NATURAL_INSTRUCTION,
        doubts=(
            "version: use 0.1.0, later ones are reported broken",
            "state: axis-angle though the registry says Euler, its gripper is 1 closed",
        ),
    ),
    "language_table": base.Standard(  # pushing blocks with an xArm
        robot="xarm",
        control_hz=10.0,
        cameras=base.views(primary="rgb"),
        actions=(columns.tensor("action", 2), columns.zeros(4), columns.ones()),
        states=(columns.tensor("observation/effector_translation", 2), columns.zeros(6)),
        convention=embodiment.end_effector(rotation="none", gripper="none"),
        language="observation/instruction",
        language_field=base.Field(kind="tensor", shape=(512,), dtype="int32"),
        read_language=_code_points,
    ),
}
