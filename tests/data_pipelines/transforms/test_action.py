import numpy as np
import pytest

from data_pipelines.transforms import action

_ACTIONS = np.array([[1, 10], [2, 20], [3, 30]], np.float32)


@pytest.mark.parametrize(
    ("start", "chunk", "mask"),
    [
        (0, [[1, 10], [2, 20]], [True, True]),
        (1, [[2, 20], [3, 30]], [True, True]),
        (2, [[3, 30], [0, 0]], [True, False]),
    ],
)
def test_chunk_pads_past_the_end(start, chunk, mask):
    got, got_mask = action.Chunk(horizon=2)(_ACTIONS, start)
    assert got.tolist() == chunk
    assert got_mask.tolist() == mask
    assert (got.dtype, got_mask.dtype) == (np.float32, np.bool_)


def test_chunk_longer_than_the_episode():
    got, mask = action.Chunk(horizon=5)(_ACTIONS, 0)
    assert got[:, 0].tolist() == [1, 2, 3, 0, 0]
    assert mask.tolist() == [True, True, True, False, False]


def test_mean_between_takes_the_steps_that_lead_there():
    mean = action.MeanBetween()
    assert mean(_ACTIONS, 0, 2).tolist() == [1.5, 15]
    assert mean(_ACTIONS, 1, 1).tolist() == [2, 20]
