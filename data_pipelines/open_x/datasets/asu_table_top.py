"""Table-top tasks of a UR5 (Arizona State University)."""

from data_pipelines.open_x import base, columns

STANDARDS = {
    "asu_table_top_converted_externally_to_rlds": base.Standard(
        robot="ur5",
        control_hz=12.5,
        actions=(columns.tensor("action", 7),),
        states=(
            columns.tensor("ground_truth_states/EE", 6),  # beside the observation
            columns.zeros(),
            columns.tensor("observation/state", 7)[6:],
        ),
        convention=base.UNDOCUMENTED,
        doubts=(
            "motion: joint and gripper velocities by the catalogue, though the registry calls them "
            "a pose; a field action_delta exists beside it and is not used",
            base.GRIPPER_AS_STORED,
        ),
    )
}
