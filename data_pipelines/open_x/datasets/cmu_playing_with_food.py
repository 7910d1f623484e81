"""Cutting and handling food with a Franka arm (CMU)."""

from data_pipelines.open_x import base, columns, rotation

_ACTION = columns.tensor("action", 8)  # xyz, quaternion, grasp

STANDARDS = {
    "cmu_playing_with_food": base.Standard(
        robot="franka",
        control_hz=10.0,
        cameras=base.views(primary="image", wrist="finger_vision_1"),
        actions=(_ACTION[:3], _ACTION[3:7].then(rotation.euler_of_quaternion), _ACTION[7:]),
        states=(columns.tensor("observation/state", 6), columns.zeros(2)),
        convention=base.UNDOCUMENTED,
        doubts=(
            "state: force and torque, though the registry calls it a pose",
            "motion: whether poses are absolute or deltas is not documented",
            base.GRIPPER_AS_STORED,
        ),
    )
}
