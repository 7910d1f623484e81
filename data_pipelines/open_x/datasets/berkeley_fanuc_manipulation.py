"""Table-top tasks of a Fanuc arm (Berkeley)."""

from data_pipelines.open_x import base, columns, gripper

_STATE = columns.tensor("observation/state", 13)  # joints 6, gripper, joint speeds 6

STANDARDS = {
    "berkeley_fanuc_manipulation": base.Standard(
        robot="fanuc_mate",
        control_hz=10.0,
        cameras=base.views(primary="image", wrist="wrist_image"),
        # No command is stored for the gripper: its state stands in.
        actions=(columns.tensor("action", 6), _STATE[6:7].then(gripper.invert)),
        states=(_STATE[:6], columns.zeros(), _STATE[6:7]),
        doubts=(
            "gripper sign: the catalogue calls the state an open status, the reference inverts it",
            base.BGR_ALL,
        ),
    )
}
