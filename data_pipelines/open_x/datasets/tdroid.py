"""T-DROID: six tasks of a Franka arm, to fine-tune on (OpenVLA)."""

from data_pipelines.open_x import base, columns, gripper
from defi_jax import embodiment

_ACTION = columns.tensor("action", 7)

_TASK = base.Standard(
    robot="franka",
    control_hz=5.0,
    cameras=base.views(primary="static_image"),
    actions=(_ACTION[:6], _ACTION[6:].within(-1, 1).then(gripper.binarize)),
    states=(
        columns.tensor("observation/cartesian_position", 6),
        columns.zeros(),
        columns.tensor("observation/gripper_position", 1),
    ),
    convention=embodiment.end_effector(motion=embodiment.UNKNOWN),
    doubts=(
        "action: velocities of hand and gripper by the data set's own builder, though the "
        "reference takes the last for an opening",
    ),
)

_NAMES = (
    "carrot_in_bowl",
    "pour_corn_in_pot",
    "flip_pot_upright",
    "move_object_onto_plate",
    "knock_object_over",
    "cover_object_with_towel",
)

STANDARDS = {f"tdroid_{name}": _TASK for name in _NAMES}
