"""Navigation of mobile robots: RECON, Cory Hall and SACSoN (Berkeley)."""

import dataclasses

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_RECON = base.Standard(
    robot="jackal",
    control_hz=3.0,
    cameras=base.views(primary="image", wrist="image"),  # one camera, officially both views
    actions=(columns.tensor("action", 2, dtype="float64"), columns.zeros(5)),
    states=(
        columns.tensor("observation/position", 2, dtype="float64"),
        columns.zeros(3),
        columns.tensor("observation/yaw", 1, dtype="float64"),
        columns.zeros(2),
    ),
    convention=embodiment.end_effector(motion="waypoint", rotation="none", gripper="none"),
)

STANDARDS = {
    "berkeley_gnm_recon": _RECON,
    "berkeley_gnm_cory_hall": dataclasses.replace(_RECON, robot="rc_car", control_hz=5.0),
    "berkeley_gnm_sac_son": dataclasses.replace(_RECON, robot="turtlebot2", control_hz=10.0),
}
