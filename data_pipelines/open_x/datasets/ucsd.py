"""Kitchen and pick-and-place tasks of an xArm (UC San Diego)."""

from data_pipelines.open_x import base, columns
from defi_jax import embodiment

_STATE = columns.tensor("observation/state", 7)
_VELOCITY = columns.tensor("action", 4)

STANDARDS = {
    "ucsd_kitchen_dataset_converted_externally_to_rlds": base.Standard(
        robot="xarm",
        control_hz=2.0,
        actions=(columns.tensor("action", 8)[:7],),  # the last is the terminate flag
        states=(columns.tensor("observation/state", 21)[:7], columns.zeros()),
        convention=base.UNDOCUMENTED,
        pair_offset=(2, 4),
        doubts=(
            "motion: absolute poses by the catalogue, deltas by the registry",
            base.GRIPPER_AS_STORED,
        ),
    ),
    "ucsd_pick_and_place_dataset_converted_externally_to_rlds": base.Standard(
        robot="xarm",
        control_hz=3.0,
        actions=(_VELOCITY[:3], columns.zeros(3), _VELOCITY[3:]),
        states=(_STATE[:6], columns.zeros(), _STATE[6:]),
        convention=embodiment.end_effector(
            motion="velocity", rotation="none", gripper=embodiment.UNKNOWN
        ),
        doubts=("gripper: a torque, left as stored",),
    ),
}
