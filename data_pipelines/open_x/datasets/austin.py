"""BUDS, Sailor, Sirius and MUTEX: tasks of a Franka arm (UT Austin)."""

import dataclasses

from data_pipelines.open_x import base, columns, gripper

_ACTION = columns.tensor("action", 7)

_BUDS = base.Standard(
    robot="franka",
    control_hz=20.0,
    cameras=base.views(primary="image", wrist="wrist_image"),
    actions=(_ACTION[:6], _ACTION[6:].within(-1, 1).then(gripper.clip, gripper.invert)),
    states=(columns.tensor("observation/state", 24)[:8],),  # 7 joints and the gripper
)
_SAILOR = dataclasses.replace(_BUDS, states=(columns.tensor("observation/state", 8),))

STANDARDS = {
    "austin_buds_dataset_converted_externally_to_rlds": _BUDS,
    "austin_sailor_dataset_converted_externally_to_rlds": dataclasses.replace(
        _SAILOR, pair_offset=(14, 19)
    ),
    "austin_sirius_dataset_converted_externally_to_rlds": dataclasses.replace(
        _SAILOR,
        doubts=("state: joints and gripper by the catalogue, a pose by the registry",),
    ),
    "utaustin_mutex": dataclasses.replace(_BUDS, pair_offset=(14, 19), doubts=(base.BGR_ALL,)),
}
