"""Exploration in a toy kitchen with a Franka arm (CMU)."""

from data_pipelines.open_x import base, columns

STANDARDS = {
    "cmu_franka_exploration_dataset_converted_externally_to_rlds": base.Standard(
        robot="franka",
        control_hz=10.0,
        cameras=base.views(primary="highres_image"),
        actions=(columns.tensor("action", 8)[:7],),  # the last is the terminate flag
        states=(columns.zeros(8),),
        convention=base.UNDOCUMENTED,
        doubts=(base.GRIPPER_AS_STORED,),
    )
}
