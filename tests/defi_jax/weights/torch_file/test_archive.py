"""Files written by real PyTorch (tests/fixtures/make_archives.py) and hand-made malicious ones."""

import os
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from defi_jax import errors
from defi_jax.weights.torch_file import archive as archive_lib
from defi_jax.weights.torch_file import unpickler
from tests.fixtures import seeded

ARCHIVES = pathlib.Path(__file__).parents[3] / "fixtures" / "archives"
BASE = seeded.noise("base", (4, 6))


class _Calls:
    """Pickles into a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def _write(path: pathlib.Path, pickled: bytes, **members: bytes) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for name, data in members.items():
            file.writestr(f"archive/data/{name}", data)
    return path


@pytest.mark.parametrize(
    "name, keys",
    [("state_dict.pth", ()), ("lightning.ckpt", ("state_dict",)), ("omegaconf.pt", ("model",))],
)
def test_every_tensor_of_a_real_file_is_read(name, keys):
    archive = archive_lib.TorchArchive(ARCHIVES / name, keys)
    expected = {
        "base": BASE,
        "transposed": BASE.T,
        "window": BASE[1:3, 2:4],
        "half": BASE.astype(np.float16),
        "bfloat16": BASE.astype(ml_dtypes.bfloat16),
        "double": BASE.astype(np.float64),
        "int64": np.arange(5),
        "bool": np.array([True, False]),
        "scalar": np.float32(3.5),
        "empty": np.zeros((0, 4), np.float32),
        "parameter": BASE[0],
    }
    assert set(archive) == set(expected)
    for key, value in expected.items():
        assert archive[key].dtype == value.dtype, key
        assert archive[key].flags.c_contiguous
        np.testing.assert_array_equal(archive[key], value, err_msg=key)


def test_torchscript_modules_give_their_tensors_by_attribute_path():
    archive = archive_lib.TorchArchive(ARCHIVES / "script.pt")
    assert set(archive) == {"scale", "child.weight"}
    np.testing.assert_array_equal(archive["child.weight"], seeded.noise("child.weight", (2, 3)))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "function, name",
    [(os.system, "posix.system"), (eval, "eval"), (getattr, "getattr"), (np.save, "numpy.save")],
)
def test_any_other_name_is_refused_and_nothing_runs(tmp_path, protocol, function, name):
    witness = tmp_path / "witness"
    payload = _Calls(function, f"touch {witness}")
    pickled = pickle.dumps({"weight": payload}, protocol)
    path = _write(tmp_path / "bad.pt", pickled)
    with pytest.raises(errors.DataError, match=f"pickle names .*{name}"):
        archive_lib.TorchArchive(path)
    assert not witness.exists()


def test_inert_names_cannot_be_used_to_reach_others():
    # pathlib is recorded, not imported: its attributes and calls stay records.
    record = unpickler.load(pickle.dumps(pathlib.PurePosixPath("a/b"), 2), "test")
    assert isinstance(record, unpickler.Record)
    assert str(record.name) == "pathlib.PurePosixPath"
    # A record is no function: applying the result of a call is refused.
    stream = b"cpathlib\nPath\n(tR(tR."
    with pytest.raises(errors.DataError, match="pickle calls"):
        unpickler.load(stream, "test")
    # A prefix is a whole package name.
    with pytest.raises(errors.DataError, match=r"names pathlib2.Path"):
        unpickler.load(b"cpathlib2\nPath\n.", "test")


def test_damaged_streams_are_data_errors():
    good = pickle.dumps({"a": [1, (2, 3)], "b": {"c": b"d"}}, 2)
    assert unpickler.load(good, "test") == {"a": [1, (2, 3)], "b": {"c": b"d"}}
    for length in range(len(good)):
        with pytest.raises(errors.DataError):
            unpickler.load(good[:length], "test")
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(good)
        broken[rng.integers(len(good))] = rng.integers(256)
        try:
            unpickler.load(bytes(broken), "test")
        except errors.DataError:
            continue


# A tuple of itself three times, 60 times over: printing or hashing it would take 3**60 steps.
_FOLDED = b"N" + b"22\x87" * 60  # NONE, then DUP DUP TUPLE3
_DEEP = b")" + b"\x85" * 100_000  # EMPTY_TUPLE, then TUPLE1


@pytest.mark.parametrize("value", [_FOLDED, _DEEP], ids=["folded", "deep"])
@pytest.mark.parametrize(
    "stream",
    [
        b"}%bNs.",  # a key of a dictionary
        b"ccollections\nOrderedDict\n]%bN\x86a\x85R.",  # the same, in pairs
        b"%b%b\x93.",  # a name
        b"%b)R.",  # a call
        b"(X\7\0\0\0storagectorch\nFloatStorage\n%bNK\1tQ.",  # the key of a storage
        b"(X\7\0\0\0storage%bNNK\1tQ.",  # the class of a storage
        b"c_codecs\nencode\nX\1\0\0\0a%b\x86R.",  # an encoding
        b"ctorch\ndevice\n%b%b\x86RQ.",  # a device
    ],
)
def test_what_is_folded_or_deep_is_refused_at_once(stream, value):
    with pytest.raises(errors.DataError) as caught:
        unpickler.load(stream.replace(b"%b", value), "test")
    assert len(str(caught.value)) < 300


def test_deep_values_without_meaning_are_read_and_names_are_cut_in_messages(tmp_path):
    path = _write(tmp_path / "a.pt", b"}X\1\0\0\0a" + _DEEP + b"s.")
    with pytest.raises(errors.DataError, match="not tensors: a: "):
        archive_lib.TorchArchive(path)
    names = {f"{'n' * 100_000}{index}": None for index in range(30)}
    path = _write(tmp_path / "a.pt", pickle.dumps(names, 2))
    with pytest.raises(errors.DataError, match="and 20 more") as caught:
        archive_lib.TorchArchive(path)
    assert len(str(caught.value)) < 2000
    with pytest.raises(errors.DataError, match="pickle names nnn") as caught:
        unpickler.load(b"cnnn" + b"n" * 10**6 + b"\nName\n.", "test")
    assert len(str(caught.value)) < 300


def test_tensors_cannot_reach_outside_their_storage():
    storage = unpickler.Storage("float32", "0", 6)
    rebuild = unpickler._tensor
    assert rebuild(storage, 0, (2, 3), (3, 1)).shape == (2, 3)
    for offset, shape, strides in (
        (1, (2, 3), (3, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (10**12,), (0,)),
        (0, (2, 2), (1,)),
        (0, (True, 2), (1, 1)),
        (0, (1,) * 100, (1,) * 100),
        (0, (0, 2**70), (1, 1)),
        (0, (0, 2**40, 2**40), (1, 1, 1)),
        (0, (0, 2), (2**62, 1)),
        (0, 3, (1,)),
    ):
        with pytest.raises(ValueError, match="tensor"):
            rebuild(storage, offset, shape, strides)


def test_entries_that_are_not_tensors_and_missing_keys_are_named(tmp_path):
    path = _write(tmp_path / "a.pt", pickle.dumps({"b": 1, "a": "text"}, 2))
    with pytest.raises(errors.DataError, match="entries that are not tensors: a; b"):
        archive_lib.TorchArchive(path)
    with pytest.raises(errors.DataError, match="without 'model'"):
        archive_lib.TorchArchive(path, ("model",))


def test_damaged_archives_are_named(tmp_path):
    source = (ARCHIVES / "state_dict.pth").read_bytes()
    with pytest.raises(errors.UserError, match="no such file"):
        archive_lib.TorchArchive(tmp_path / "absent.pt")
    for length in (0, 10, len(source) // 2, len(source) - 30):
        path = tmp_path / "short.pth"
        path.write_bytes(source[:length])
        with pytest.raises(errors.DataError):
            archive_lib.TorchArchive(path)
    with pytest.raises(errors.DataError, match=r"older than PyTorch 1\.6"):
        archive_lib.TorchArchive(ARCHIVES / "legacy.pth")
    flipped = bytearray(source)
    position = source.index(BASE.tobytes()) + 5
    flipped[position] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(errors.DataError, match="damaged archive"):
        archive_lib.TorchArchive(path)["base"]


@pytest.mark.parametrize(
    "offset, value, message",
    [
        (8, 1, "encrypted"),  # general flags of the directory's entry
        (6, 99, "zip file version"),  # version needed to extract
        (46, 0xFF, "utf-8"),  # first letter of the name, said to be UTF-8
    ],
)
def test_archives_that_zipfile_refuses_are_named(tmp_path, offset, value, message):
    path = _write(tmp_path / "a.pt", pickle.dumps({}, 2))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + offset] |= value
    data[entry + 9] |= 8 if offset == 46 else 0
    path.write_bytes(data)
    with pytest.raises(errors.DataError, match=message):
        archive_lib.TorchArchive(path)


def test_short_storage_and_compressed_member_are_refused(tmp_path):
    with zipfile.ZipFile(ARCHIVES / "script.pt") as file:
        members = {name: file.read(name) for name in file.namelist()}
    storage = next(name for name in members if name.endswith("data/0"))
    for data, method, message in (
        (members[storage][:-4], zipfile.ZIP_STORED, "bytes, expected"),
        (members[storage], zipfile.ZIP_DEFLATED, "compressed"),
    ):
        path = tmp_path / "changed.pt"
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                is_it = name == storage
                file.writestr(name, data if is_it else content, method if is_it else None)
        archive = archive_lib.TorchArchive(path)
        with pytest.raises(errors.DataError, match=message):
            dict(archive)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_of_two_pickles_is_refused(tmp_path):
    path = _write(tmp_path / "a.pt", pickle.dumps({}, 2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(next(n for n in archive.namelist() if n.endswith("data.pkl")), b"")
    with pytest.raises(errors.DataError, match=r"without one data\.pkl"):
        archive_lib.TorchArchive(path)
