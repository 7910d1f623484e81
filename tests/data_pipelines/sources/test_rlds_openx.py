"""Each registered dataset from files as TFDS writes them to episodes."""

import json
import zlib

import numpy as np
import pytest

from data_pipelines.formats import image
from data_pipelines.open_x import columns, registry
from data_pipelines.sources import rlds

STEPS = 5
IMAGES = [image.encode_jpeg(np.full((8, 12, 3), 40 * step, np.uint8)) for step in range(STEPS)]


def _describe(field: columns.Field, encoding: str) -> dict:
    if field.kind == "image":
        return {"image": {"shape": {"dimensions": ["8", "12", "3"]}, "dtype": "uint8"}}
    if field.kind == "text":
        return {"text": {}}
    shape = {"dimensions": [str(size) for size in field.shape]} if field.shape else {}
    dtype = "float32" if field.dtype == "any" else field.dtype
    return {"tensor": {"shape": shape, "dtype": dtype, "encoding": encoding}}


def _nested(leaves: dict[str, dict]) -> dict:
    """Features of a step, nested where paths have slashes."""
    features: dict = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = features
        for parent in parents:
            node = node.setdefault(parent, {"featuresDict": {"features": {}}})
            node = node["featuresDict"]["features"]
        node[name] = leaf
    return {"featuresDict": {"features": features}}


def _values(field: columns.Field, encoding: str):
    if field.kind == "image":
        return IMAGES
    if field.kind == "text":
        return [b"push"] * STEPS
    dtype = "float32" if field.dtype == "any" else field.dtype
    values = np.full((STEPS, *field.shape), 1, dtype)
    if encoding == "zlib":
        return [zlib.compress(step.tobytes()) for step in values]
    return values


def _write(directory, name: str, tools: dict, encoding: str = "none") -> None:
    fields = registry.find(name).fields
    encodings = {
        path: encoding if field.kind == "tensor" and len(field.shape) else "none"
        for path, field in fields.items()
    }
    steps = _nested({path: _describe(field, encodings[path]) for path, field in fields.items()})
    whole = {"steps": {"sequence": {"feature": steps, "length": "-1"}}}
    record = {f"steps/{path}": _values(field, encodings[path]) for path, field in fields.items()}
    shard = directory / f"{name}-train.tfrecord-00000-of-00001"
    tools["records"](shard, [tools["example"](record)])
    split = {"name": "train", "shardLengths": ["1"]}
    info = {"name": name, "version": "0.1.0", "splits": [split]}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    (directory / "features.json").write_text(json.dumps({"featuresDict": {"features": whole}}))


@pytest.mark.parametrize("name", registry.standards())
def test_dataset_is_read_from_its_files(tmp_path, rlds_tools, name):
    _write(tmp_path, name, rlds_tools)
    (episode,) = rlds.RldsSource(tmp_path).read()
    standard = registry.find(name)
    assert set(episode.frames) == set(standard.cameras)
    assert episode.source == name and episode.embodiment == standard.robot
    for frames in episode.frames.values():
        assert set(frames) <= set(IMAGES)  # the bytes as they were
    assert (episode.actions is None) == (standard.actions is None)
    if episode.actions is not None:
        assert episode.actions.shape == (episode.length, len(standard.convention.action_names))


def test_compressed_tensors_are_inflated(tmp_path, rlds_tools):
    _write(tmp_path, "kuka", rlds_tools, encoding="zlib")
    (episode,) = rlds.RldsSource(tmp_path).read()
    np.testing.assert_array_equal(episode.states, np.ones((STEPS, 8), np.float32))
