import pickle

import numpy as np
import pytest

from data_pipelines.loading import features
from defi_jax import errors


@pytest.fixture
def path(tmp_path):
    rows = np.arange(10, dtype=np.float16).reshape(5, 2)
    rows[3] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    return tmp_path / "rows.npy"


def test_rows_lie_by_component_and_sample(path):
    one, other = features.FeatureRows(path, 0), features.FeatureRows(path, 2)
    assert one(1).tolist() == [2, 3]
    assert other(0).tolist() == [4, 5]
    assert other(2).dtype == np.float16
    with pytest.raises(errors.DataError, match="frames are damaged"):
        other(1)


def test_rows_travel_to_worker_processes_without_their_data(path):
    np.save(path, np.ones((5, 1000), np.float16))
    sent = pickle.dumps(features.FeatureRows(path, 2))
    assert len(sent) < 1000
    np.save(path, np.full((5, 2), 7, np.float16))
    assert pickle.loads(sent)(1).tolist() == [7, 7]
