import numpy as np
import pytest

from data_pipelines.open_x import gripper


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        ([1, 1, 0.7, 0.3, 0, 0, 0.5, 1], [1, 1, 0, 0, 0, 0, 1, 1]),
        ([0, 0.5, 0.5], [0, 0.5, 0.5]),  # never decided: the raw last value
        ([0.3, 0.6], [0.6, 0.6]),
        ([1, 0.96, 0.94, 0.06, 0.04], [1, 1, 0, 0, 0]),
        ([], []),
    ],
)
def test_binarize_takes_the_state_that_is_reached(signal, expected):
    np.testing.assert_array_equal(gripper.binarize(np.array(signal)), np.float32(expected))


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        ([0, 0, 1, 0, -1, 0], [1, 1, 0, 0, 1, 1]),
        ([0, 0, -1, 0, 1, 0], [0, 0, 1, 1, 0, 0]),
        ([0, 0, 0, 0], [1, 1, 1, 1]),  # never commanded
        ([1, 0, 0], [0, 0, 0]),
        ([0.1, -0.1, 0.11], [1, 1, 0]),  # too weak to be commands
        ([], []),
    ],
)
def test_relative_commands_are_held(signal, expected):
    found = gripper.relative_to_absolute(np.array(signal))
    np.testing.assert_array_equal(found, np.float32(expected))


def test_clip_and_invert():
    np.testing.assert_array_equal(gripper.clip(np.array([-1, 0.25, 2])), np.float32([0, 0.25, 1]))
    np.testing.assert_array_equal(gripper.invert(np.array([0, 0.25, 1])), np.float32([1, 0.75, 0]))


@pytest.mark.parametrize(
    "rule", [gripper.clip, gripper.invert, gripper.binarize, gripper.relative_to_absolute]
)
def test_rules_keep_the_shape(rule):
    column = np.array([[0.0], [1.0], [0.5]])
    assert rule(column).shape == (3, 1) and rule(column).dtype == np.float32
    np.testing.assert_array_equal(rule(column)[:, 0], rule(column[:, 0]))
