"""Kitchen and pick-and-place tasks of an xArm, and ManiSkill2 (UC San Diego)."""

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
    "maniskill_dataset_converted_externally_to_rlds": base.Standard(  # ManiSkill2: simulated
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
    ),
}
