"""FurnitureBench: assembly with a Franka arm (KAIST)."""

from data_pipelines.open_x import base, columns, gripper, rotation

_ACTION = columns.tensor("action", 8)  # xyz, quaternion, gripper
_STATE = columns.tensor("observation/state", 35)

STANDARDS = {
    "furniture_bench_dataset_converted_externally_to_rlds": base.Standard(
        robot="franka",
        control_hz=10.0,
        cameras=base.views(primary="image", wrist="wrist_image"),
        actions=(
            _ACTION[:3],
            _ACTION[3:7].then(rotation.euler_of_quaternion),
            _ACTION[7:].within(-1, 1).then(gripper.clip, gripper.invert),
        ),
        states=(_STATE[:7], _STATE[34:]),
        doubts=(
            "motion and gripper: velocities by the data set's own builder, though the registry "
            "calls them deltas and a command",
        ),
    )
}
