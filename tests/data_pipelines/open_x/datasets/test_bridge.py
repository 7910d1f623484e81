import json
import pathlib

import numpy as np
import pytest

from data_pipelines import normalization
from data_pipelines.loading import config, sample_kinds
from data_pipelines.open_x import gripper, registry
from data_pipelines.sources import rlds, rlds_directory

SHARED = pathlib.Path(__file__).parents[5] / "shared"
_ALL = rlds_directory.RldsOptions(splits=rlds_directory.ALL_SPLITS)


def _raw_steps(steps: int) -> dict:
    """States that count up, so that every difference has a known value."""
    state = np.arange(steps, dtype=np.float32)[:, None] ** 2 * np.ones(7, np.float32)
    action = np.full((steps, 7), 0.9, np.float32)
    action[:, -1] = [1, 0.5, 0, 0.5, 1][:steps]
    return {
        "observation/image_0": [b""] * steps,
        "observation/state": state,
        "action": action,
        "language_instruction": [b" Turn left "] * steps,
    }


def test_first_and_last_step_go_and_motion_is_relabelled():
    trajectory = registry.find("bridge_dataset").standardize(_raw_steps(5))
    assert trajectory.kept == range(1, 4)
    # States 0, 1, 4, 9, 16: reached motion after steps 1, 2, 3 is 3, 5, 7; recorded 0.9s are gone.
    np.testing.assert_array_equal(trajectory.actions[:, 0], [3, 5, 7])
    np.testing.assert_array_equal(trajectory.actions[:, 6], [0, 0, 1])  # the dropped step decides
    np.testing.assert_array_equal(trajectory.states[:, 5], [1, 4, 9])
    np.testing.assert_array_equal(trajectory.states[:, 6], [0, 0, 0])
    np.testing.assert_array_equal(trajectory.states[:, 7], [1, 4, 9])
    assert trajectory.instructions == ("Turn left",)
    assert trajectory.actions.dtype == trajectory.states.dtype == np.float32


def test_two_steps_are_too_few():
    with pytest.raises(ValueError, match="fewer than three"):
        registry.find("bridge_dataset").standardize(_raw_steps(2))


@pytest.fixture(scope="module")
def golden() -> dict:
    path = SHARED / "golden" / "debug_bridge_golden.json"
    if not path.exists():
        pytest.skip("reference numbers are not on this machine")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def episodes(golden) -> list:
    return list(rlds.RldsSource(SHARED / "data" / "rlds" / "bridge_dataset", _ALL).read())


def test_golden_gripper(golden):
    for example in golden["binarize"]:
        found = gripper.binarize(np.array(example["inp"]))
        np.testing.assert_array_equal(found, np.float32(example["out"]))


def test_golden_relative_gripper(golden):
    for example in golden["rel2abs"]:
        found = gripper.relative_to_absolute(np.array(example["inp"]))
        np.testing.assert_array_equal(found, np.float32(example["out"]))


@pytest.mark.parametrize(("length", "window"), [(8, 10), (8, 3), (5, 2)])
def test_golden_pairs(golden, length, window):
    own = config.DataConfig(pair_offset=(window - 1, window - 1), pair_include_last=True)
    none = normalization.Normalizer(kind="none", statistics=None, mask=(True,))
    pairs = sample_kinds.Pairs(config=own, normalizer=none, train=True)
    rng = np.random.default_rng(0)
    found = [pairs.frames(length, t, rng).tolist() for t in range(length)]
    assert found == golden[f"pair_index_T{length}_w{window}"]


def test_golden_first_episode(golden, episodes):
    # The reference prints six decimals.
    first = golden["first_train_episode"]
    found = next(e for e in episodes if e.episode_id == "bridge_dataset/train/00000/00000")
    np.testing.assert_allclose(found.actions, first["actions"], rtol=0, atol=6e-7)
    np.testing.assert_allclose(found.states, first["proprio"], rtol=0, atol=6e-7)
    assert found.instructions == (first["language"],)


@pytest.mark.parametrize("split", ["train", "all"])
def test_golden_statistics(golden, episodes, split):
    expected = golden[f"stats_{split}"]
    chosen = [e for e in episodes if split == "all" or f"/{split}/" in e.episode_id]
    assert len(chosen) == expected["num_trajectories"]
    assert sum(e.length for e in chosen) == expected["num_transitions"]
    for name, column in (("action", "actions"), ("proprio", "states")):
        found = normalization.compute(np.concatenate([getattr(e, column) for e in chosen]))
        for moment, values in expected[name].items():
            # The reference sums in float32.
            np.testing.assert_allclose(getattr(found, moment), values, rtol=2e-5, atol=1e-7)
