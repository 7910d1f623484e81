"""Play data of a Jaco 2 arm (USC)."""

from data_pipelines.open_x import base, columns, gripper
from defi_jax import embodiment

_STATE = columns.tensor("observation/end_effector_cartesian_pos", 7)

STANDARDS = {
    "jaco_play": base.Standard(
        robot="jaco2",
        control_hz=10.0,
        cameras=base.views(primary="image", wrist="image_wrist"),
        actions=(
            columns.tensor("action/world_vector", 3),
            columns.zeros(3),
            columns.rt1_closedness(1).then(gripper.relative_to_absolute),
        ),
        states=(_STATE[:6], columns.zeros(), _STATE[6:]),
        convention=embodiment.end_effector(rotation="none"),
        language=base.NATURAL_INSTRUCTION,
        doubts=(
            "state: if its 7 numbers are position and quaternion, the columns taken as Euler "
            "angles and gripper are parts of the quaternion",
        ),
    )
}
