"""Opening doors with a Stretch, seen by its wrist camera alone (NYU)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

STANDARDS = {
    "nyu_door_opening_surprising_effectiveness": base.Standard(
        robot="stretch",
        control_hz=3.0,
        cameras=base.views(wrist="image"),
        actions=base.RT1_ACTIONS,
        states=(columns.zeros(8),),
        convention=embodiment.end_effector(motion="velocity"),
        language=base.NATURAL_INSTRUCTION,
        doubts=("motion: velocities, though the registry calls them deltas",),
    )
}
