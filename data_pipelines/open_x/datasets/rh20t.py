"""RH20T: contact-rich tasks, here of a Flexiv arm (SJTU)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_POSE = columns.tensor("observation/tcp_base", 6, dtype="any")

STANDARDS = {
    "rh20t": base.Standard(
        robot="flexiv",
        control_hz=10.0,
        cameras=base.views(
            primary="image_front", secondary="image_side_right", wrist="image_wrist"
        ),
        actions=(
            columns.tensor("action/tcp_base", 6, dtype="any"),
            columns.tensor("action/gripper", dtype="any"),
        ),
        states=(_POSE, columns.tensor("observation/gripper_width", dtype="any")),
        convention=embodiment.end_effector(
            motion="absolute", frame="base", gripper=embodiment.UNKNOWN
        ),
        doubts=(
            "motion: absolute poses, though the registry calls them deltas",
            base.GRIPPER_AS_STORED,
            "fields: camera names are the registry's, nobody has seen the published files",
        ),
    )
}
