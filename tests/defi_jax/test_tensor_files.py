import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from defi_jax import errors, tensor_files

TENSORS = {
    "stack": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "half": np.arange(5, dtype=np.float16),
    "brain": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.uint8),
    "flags": np.array([True, False]),
}


def _specs(tensors=TENSORS):
    return {name: tensor_files.spec_of(tensors, name) for name in tensors}


def _write(path):
    with tensor_files.SafetensorsWriter(path, _specs(), {"format": "pt"}) as writer:
        # In any order, the stack by slices from the end.
        for layer in (1, 0):
            writer.write("stack", TENSORS["stack"][layer], layer)
        writer.write_all((name, value) for name, value in TENSORS.items() if name != "stack")
    return path


def test_the_format_is_that_of_the_library(tmp_path):
    path = _write(tmp_path / "a.safetensors")
    theirs = safetensors.numpy.load_file(path)
    ours = tensor_files.SafetensorsFiles(path)
    assert theirs.keys() == ours.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        for read in (theirs[name], ours[name], ours.read(name, ...)):
            assert (read.dtype, read.shape) == (value.dtype, value.shape)
            np.testing.assert_array_equal(read, value)
        assert ours.spec(name) == (value.shape, value.dtype)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    np.testing.assert_array_equal(ours.read("stack", 1), TENSORS["stack"][1])
    part = (slice(0, 2), slice(1, 2), slice(2, 4))
    np.testing.assert_array_equal(ours.read("stack", part), TENSORS["stack"][part])


def test_a_file_with_a_hole_or_a_wrong_tensor_is_a_bug(tmp_path):
    with (
        pytest.raises(ValueError, match=r"\d+ bytes of .* were never written"),
        tensor_files.SafetensorsWriter(tmp_path / "a", _specs()) as writer,
    ):
        writer.write("stack", TENSORS["stack"][0], 0)
    with (
        pytest.raises(ValueError, match="half is float32"),
        tensor_files.SafetensorsWriter(tmp_path / "a", _specs()) as writer,
    ):
        writer.write("half", TENSORS["half"].astype(np.float32))


def test_prefixes_are_taken_off():
    below = tensor_files.Below({"lam.a": TENSORS["half"], "b": TENSORS["flags"]}, "lam.")
    assert list(below) == ["a"]
    assert below.spec("a") == ((5,), np.float16)
    np.testing.assert_array_equal(below.read("a", slice(1, 3)), [1, 2])


def test_shards_are_one_set_of_tensors_and_lie_beside_their_index(tmp_path):
    names = sorted(TENSORS)
    for file, mine in (("x.safetensors", names[:3]), ("y.safetensors", names[3:])):
        safetensors.numpy.save_file({name: TENSORS[name] for name in mine}, tmp_path / file)
    where = {name: "x.safetensors" if name in names[:3] else "y.safetensors" for name in names}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert tensor_files.SafetensorsFiles(index).keys() == TENSORS.keys()
    for broken, message in (
        ({"weight_map": where | {"more": "x.safetensors"}}, "more is not in x.safetensors"),
        ({"weight_map": where | {names[0]: "y.safetensors"}}, f"{names[0]} is not in y"),
        ({"weight_map": where | {"more": "../x.safetensors"}}, "no weight_map of file names"),
        ({"weight_map": where | {"more": "z.safetensors"}}, "not a safetensors file"),
        ([], "no weight_map"),
    ):
        index.write_text(json.dumps(broken))
        with pytest.raises(errors.DataError, match=message):
            tensor_files.SafetensorsFiles(index)
    index.write_text(json.dumps({"weight_map": where}))
    safetensors.numpy.save_file(
        {name: TENSORS[name] for name in names[2:]}, tmp_path / "y.safetensors"
    )
    with pytest.raises(errors.DataError, match=f"another shard has {names[2]} too: .*y.safet"):
        tensor_files.SafetensorsFiles(index)
    for text in ("{", "[" * 100_000, "1" * 5000):
        index.write_text(text)
        with pytest.raises(errors.DataError, match="not JSON"):
            tensor_files.SafetensorsFiles(index)


def test_damaged_files_and_unknown_types_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(_write(path).read_bytes()[:-3])
    with pytest.raises(errors.DataError, match=r"not a safetensors file.*a\.safetensors"):
        tensor_files.SafetensorsFiles(path)
    header = {"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"ab")
    with pytest.raises(errors.DataError, match="unknown element types: w F8_E4M3"):
        tensor_files.SafetensorsFiles(path)
