import pickle

import numpy as np
import pytest

from data_pipelines.loading import feature_rows
from defi_jax import errors


@pytest.fixture
def path(tmp_path):
    rows = np.arange(10, dtype=np.float16).reshape(5, 2)
    rows[3] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    return tmp_path / "rows.npy"


def test_rows_lie_by_component_and_sample(path):
    rows = feature_rows.open_rows(path, {"a": 2, "b": 3})
    assert rows["a"](1).tolist() == [2, 3]
    assert rows["b"](0).tolist() == [4, 5]
    assert rows["b"](2).dtype == np.float16
    with pytest.raises(errors.DataError, match="frames are damaged"):
        rows["b"](1)


def test_rows_of_other_data_are_refused(path):
    with pytest.raises(ValueError, match="5 rows for 4 samples"):
        feature_rows.open_rows(path, {"a": 2, "b": 2})


def test_rows_travel_to_worker_processes_without_their_data(path):
    np.save(path, np.ones((5, 1000), np.float16))
    sent = pickle.dumps(feature_rows.open_rows(path, {"a": 2, "b": 3})["b"])
    assert len(sent) < 1000
    np.save(path, np.full((5, 2), 7, np.float16))
    assert pickle.loads(sent)(1).tolist() == [7, 7]
