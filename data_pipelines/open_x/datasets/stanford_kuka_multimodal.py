"""Peg insertion with a Kuka iiwa (Stanford)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_ACTION = columns.tensor("action", 4)

STANDARDS = {
    "stanford_kuka_multimodal_dataset_converted_externally_to_rlds": base.Standard(
        robot="kuka_iiwa",
        control_hz=20.0,
        actions=(_ACTION[:3], columns.zeros(3), _ACTION[3:]),
        states=(
            columns.tensor("observation/ee_position", 3),
            columns.tensor("observation/ee_orientation", 4),
            columns.zeros(),
        ),
        convention=embodiment.end_effector(
            motion=embodiment.UNKNOWN, rotation="none", gripper=embodiment.UNKNOWN
        ),
        doubts=(base.GRIPPER_AS_STORED,),
    )
}
