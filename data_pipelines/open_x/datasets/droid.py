"""DROID and its fine-tuning set "wipe": many scenes of a Franka arm (the DROID consortium).

Officially the two outer cameras are swapped for half of the trajectories; here both are kept, and
`--config.data.cameras` says which are drawn. Officially chunks of actions near zero are left out
of DROID; conversion keeps them.
"""

import dataclasses

from data_pipelines.open_x import base, columns, gripper
from defi_jax import embodiment

_VELOCITY = columns.tensor("action_dict/cartesian_velocity", 6, dtype="float64")
_GRIPPER = columns.tensor("action_dict/gripper_position", 1, dtype="float64")  # 1 closed

_WIPE = base.Standard(
    robot="franka",
    control_hz=15.0,
    cameras=base.views(primary="exterior_image_2_left", wrist="wrist_image_left"),
    actions=(_VELOCITY, _GRIPPER.within(0, 1).then(gripper.invert)),
    states=(
        columns.tensor("observation/cartesian_position", 6, dtype="float64"),
        columns.tensor("observation/gripper_position", 1, dtype="float64"),
    ),
    convention=embodiment.end_effector(motion="velocity", frame="base"),
)

STANDARDS = {
    "droid": dataclasses.replace(
        _WIPE,
        cameras=base.views(
            primary="exterior_image_1_left",
            secondary="exterior_image_2_left",
            wrist="wrist_image_left",
        ),
        pair_offset=(14, 19),
        doubts=("state: 7 wide, a pose of Euler angles though the registry says quaternion",),
    ),
    "droid_wipe": _WIPE,
}
