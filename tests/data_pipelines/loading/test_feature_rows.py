import pickle

import numpy as np
import pytest

from data_pipelines.loading import batches, feature_rows
from data_pipelines.sources import synthetic
from data_pipelines.transforms import text
from defi_jax import errors


class _Lengths:
    length = 1

    def __call__(self, texts):
        ids = np.array([[len(entry)] for entry in texts], np.int32)
        return ids, ids > 0

    def describe(self):
        return {}


class _Reader:
    """Reads the numbers of episode and sample; episode 1 is damaged."""

    def __call__(self, source, i, sample, rng):
        if i == 1:
            raise errors.DataError("damaged", f"episode {i}")
        return lambda: {"place": np.array([i, sample]), "unused": np.zeros(3)}


def _scan(batch_size):
    parts = []
    for name, counts in (("a", [2, 1, 2]), ("b", [3])):
        source = synthetic.SyntheticSource(image_size=8, action_dim=2, num_episodes=len(counts))
        table = batches.Table(np.arange(len(counts)), np.array(counts))
        part = batches.Part(name=name, weight=1.0, source=source, reader=_Reader(), table=table)
        parts.append(part)
    return feature_rows.Scan(
        parts=tuple(parts),
        choose=text.ChooseParaphrase(draw=True),
        tokenize=text.Tokenize(by_role={"gfdm": _Lengths()}),
        seed=3,
        batch_size=batch_size,
        blank={"place": np.full(2, -1)},
    )


def test_scan_reads_every_sample_once_in_the_order_of_rows():
    scan = _scan(3)
    assert (len(scan), scan.num_samples) == (3, 8)
    read = [scan[k] for k in range(3)]
    places = np.concatenate([batch["arrays"]["place"] for batch in read]).tolist()
    good = np.concatenate([batch["good"] for batch in read]).tolist()
    assert places == [[0, 0], [0, 1], [-1, -1], [2, 0], [2, 1], [0, 0], [0, 1], [0, 2], [-1, -1]]
    assert good == [True, True, False, True, True, True, True, True, False]


def test_scan_reads_the_same_text_at_any_batch_size():
    small, large = _scan(2), _scan(8)
    read = np.concatenate([small[k]["text"]["gfdm"][0] for k in range(4)])
    np.testing.assert_array_equal(read, large[0]["text"]["gfdm"][0])


@pytest.fixture
def path(tmp_path):
    rows = np.arange(10, dtype=np.float16).reshape(5, 2)
    rows[3] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    return tmp_path / "rows.npy"


def test_rows_lie_by_part_and_sample(path):
    rows = feature_rows.FeatureRows(path, [2, 3])
    assert rows(0, 1).tolist() == [2, 3]
    assert rows(1, 0).tolist() == [4, 5]
    assert rows(1, 2).dtype == np.float16
    with pytest.raises(errors.DataError, match="frames are damaged"):
        rows(1, 1)


def test_rows_of_other_data_are_refused(path):
    with pytest.raises(ValueError, match="5 rows for 4 samples"):
        feature_rows.FeatureRows(path, [2, 2])


def test_rows_travel_to_worker_processes_without_their_data(path):
    np.save(path, np.ones((5, 1000), np.float16))
    sent = pickle.dumps(feature_rows.FeatureRows(path, [2, 3]))
    assert len(sent) < 1000
    np.save(path, np.full((5, 2), 7, np.float16))
    assert pickle.loads(sent)(0, 1).tolist() == [7, 7]
