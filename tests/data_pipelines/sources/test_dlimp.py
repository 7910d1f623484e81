import zlib

import numpy as np
import pytest

from data_pipelines.formats import image as image_lib
from data_pipelines.sources import dlimp, dlimp_dataset, rlds
from defi_jax import errors

STEPS = 4


@pytest.fixture
def directory(write_rlds, rlds_tools):
    return write_rlds([[rlds_tools["episode"](0), rlds_tools["episode"](1, steps=9)]])


def test_raw_trajectories_become_the_episodes_of_their_files(directory):
    accepted = dlimp.TrajectorySource(
        dlimp_dataset.Trajectories.from_rlds(directory), dataset="bridge_dataset", total=2
    )
    found, wanted = list(accepted.read()), list(rlds.RldsSource(directory).read())
    assert [e.length for e in found] == [4, 7]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.states, other.states)
        assert one.frames == other.frames and one.instructions == other.instructions
        assert one.metadata == other.metadata
    rest = accepted.read(skip={found[0].episode_id})
    assert [e.episode_id for e in rest] == [found[1].episode_id]


def test_restructured_trajectories_are_refused(directory):
    restructured = dlimp_dataset.Trajectories.from_rlds(directory).traj_map(
        lambda t: {"action": t["action"], "observation": {"state": t["observation"]["state"]}}
    )
    with pytest.raises(errors.DataError, match=r"language_instruction, .*image_1: trajectory 0"):
        list(dlimp.TrajectorySource(restructured, dataset="bridge_dataset").read())


def test_tensors_that_dlimp_leaves_compressed_are_inflated():
    def compressed(width):
        step = np.arange(width, dtype=np.float32).tobytes()
        return np.array([zlib.compress(step)] * STEPS, object)

    image = image_lib.encode_png(np.zeros((4, 4, 3), np.uint8))
    raw = {
        "action": {
            "world_vector": np.zeros((STEPS, 3), np.float32),
            "rotation_delta": np.zeros((STEPS, 3), np.float32),
            "gripper_closedness_action": np.ones((STEPS, 1), np.float32),
        },
        "observation": {
            "image": np.array([image] * STEPS, object),
            "natural_language_instruction": np.array([b"pick"] * STEPS, object),
            "clip_function_input/base_pose_tool_reached": compressed(7),
            "gripper_closed": compressed(1),
        },
    }
    (episode,) = dlimp.TrajectorySource([raw], dataset="kuka").read()
    np.testing.assert_array_equal(episode.states[2], [0, 1, 2, 3, 4, 5, 6, 0])

    failed = raw | {"traj_metadata": {"success": np.zeros(STEPS, bool)}}
    (rejected,) = dlimp.TrajectorySource([failed], dataset="kuka").read()
    assert "success" in rejected.reason
