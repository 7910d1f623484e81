"""BC-Z: table-top tasks of the Everyday Robots arm (Google)."""

from data_pipelines.open_x import base, columns, gripper
from defi_jax import embodiment

_CLOSED = columns.tensor("action/future/target_close", 10, dtype="int64")

STANDARDS = {
    "bc_z": base.Standard(
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
    )
}
