import numpy as np
import pytest

from data_pipelines.standardize import gripper


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
