"""ManiSkill2: simulated tasks of a Franka arm (UC San Diego)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

STANDARDS = {
    "maniskill_dataset_converted_externally_to_rlds": base.Standard(
        robot="franka",
        control_hz=20.0,
        cameras=base.views(primary="image", wrist="wrist_image"),
        actions=(columns.tensor("action", 7),),
        states=(
            columns.tensor("observation/tcp_pose", 7),  # xyz and quaternion w, x, y, z
            columns.tensor("observation/state", 18)[7:8],
        ),
        convention=embodiment.end_effector(
            rotation="axis-angle", units="1 = 0.1 m or 0.1 rad", gripper="+1 opens, -1 closes"
        ),
        doubts=("gripper: left in -1..1, not 0..1",),
    )
}
