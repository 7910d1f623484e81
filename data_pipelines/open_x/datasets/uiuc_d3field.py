"""D3Fields: rearranging objects with a Kinova arm (UIUC)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

STANDARDS = {
    "uiuc_d3field": base.Standard(
        robot="kinova_gen3",
        control_hz=1.0,
        cameras=base.views(primary="image_1", secondary="image_2"),
        actions=(columns.tensor("action", 3), columns.zeros(4)),
        states=(columns.zeros(8),),
        convention=embodiment.end_effector(rotation="none", gripper="none"),
        doubts=("data: reported broken by users of the published files",),
    )
}
