"""Every registered dataset, from TFRecord files that TensorFlow writes; TFDS reads its export."""

import pytest
import tensorflow_datasets as tfds

from data_pipelines.store import export
from tests.data_pipelines.open_x import catalogue, layout_checks

pytest.importorskip("tensorflow", reason="TensorFlow is only there in `make test-tensorflow`")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", catalogue.layouts())
def test_tfrecords_are_converted_and_streamed_and_come_back(tmp_path, name):
    store = layout_checks.assert_read(tmp_path, name, "tfrecord")
    for file_format in ("tfrecord", "array_record"):
        exported = f"{name}_{file_format}"  # TFDS knows a builder of the other name
        export.export_tfds(store, tmp_path, name=exported, file_format=file_format, progress=False)
        if file_format == "tfrecord":
            loaded = tfds.load(exported, data_dir=tmp_path, split="train")
            found = [list(episode["steps"].as_numpy_iterator()) for episode in loaded]
        else:
            loaded = tfds.data_source(exported, data_dir=tmp_path, split="train")
            found = [list(episode["steps"]) for episode in loaded]
        assert len(found) == len(store)
        for i, steps in enumerate(found):
            layout_checks.assert_exported(steps, store, i)
