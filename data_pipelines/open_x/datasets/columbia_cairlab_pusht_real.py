"""Push-T with a UR5 (Columbia)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

STANDARDS = {
    "columbia_cairlab_pusht_real": base.Standard(
        robot="ur5",
        control_hz=10.0,
        cameras=base.views(primary="image", wrist="wrist_image"),
        actions=(*columns.RT1_MOTION, columns.rt1_closedness()),
        states=(columns.tensor("observation/robot_state", 2), columns.zeros(6)),
        convention=embodiment.end_effector(gripper="+1 closes, -1 opens, 0 holds"),
        language=base.NATURAL_INSTRUCTION,
        doubts=("gripper: left as stored, 1 closes and -1 opens, not canonical",),
    )
}
