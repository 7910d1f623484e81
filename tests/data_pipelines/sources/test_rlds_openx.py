"""Each registered dataset from files as TFDS writes them to episodes."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines.formats import image
from data_pipelines.open_x import columns, registry
from data_pipelines.sources import rlds
from tests.data_pipelines import tfds_directory

STEPS = 5
IMAGES = [image.encode_jpeg(np.full((8, 12, 3), 40 * step, np.uint8)) for step in range(STEPS)]


def _feature(field: columns.Field, encoding: str) -> tfds.features.FeatureConnector:
    if field.kind == "image":
        return tfds.features.Image(shape=(8, 12, 3))
    if field.kind == "text":
        return tfds.features.Text()
    dtype = np.dtype(_dtype(field)).type
    encoding = encoding if field.shape else "none"
    return tfds.features.Tensor(shape=field.shape, dtype=dtype, encoding=encoding)


def _dtype(field: columns.Field) -> str:
    return "float32" if field.dtype == "any" else field.dtype


def _value(field: columns.Field, step: int):
    if field.kind == "image":
        return tfds_directory.encoded(IMAGES[step])
    if field.kind == "text":
        return "push"
    return np.full(field.shape, 1, _dtype(field))


def _nested(leaves: dict) -> dict:
    """Nested where paths have slashes."""
    found: dict = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = found
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return found


def _write(directory, name: str, file_format: str = "tfrecord", encoding: str = "none"):
    fields = registry.find(name).fields
    steps = _nested({path: _feature(field, encoding) for path, field in fields.items()})
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps)})

    def episode():
        values = [{path: _value(field, t) for path, field in fields.items()} for t in range(STEPS)]
        return {"steps": [_nested(value) for value in values]}

    return tfds_directory.write(
        directory / name / "1.0.0",
        features,
        {"train": [episode]},
        name=name,
        file_format=file_format,
    )


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("name", registry.standards())
def test_dataset_is_read_from_its_files(tmp_path, name, file_format):
    (episode,) = rlds.RldsSource(_write(tmp_path, name, file_format)).read()
    standard = registry.find(name)
    assert set(episode.frames) == set(standard.cameras)
    assert episode.source == name and episode.embodiment == standard.robot
    for frames in episode.frames.values():
        assert set(frames) <= set(IMAGES)  # the bytes as they were
    assert (episode.actions is None) == (standard.actions is None)
    if episode.actions is not None:
        assert episode.actions.shape == (episode.length, len(standard.convention.action_names))


def test_compressed_tensors_are_inflated(tmp_path):
    (episode,) = rlds.RldsSource(_write(tmp_path, "kuka", encoding="zlib")).read()
    np.testing.assert_array_equal(episode.states, np.ones((STEPS, 8), np.float32))
