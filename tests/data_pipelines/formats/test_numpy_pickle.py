import io
import os
import pickle

import numpy as np
import pytest

from data_pipelines.formats import numpy_pickle
from defi_jax import errors

CONTENT = {
    "language": {
        "ann": ["öffne die Schublade", "push"],
        "task": np.array(["open_drawer", "push"]),
        "emb": np.arange(6, dtype=np.float32).reshape(2, 1, 3),
    },
    "info": {"episodes": [], "indx": [(np.int64(3), 7), (7, np.int32(9))]},
}


def _save(path, content, protocol: int = 4, core: str = "numpy._core"):
    array = np.empty((), object)
    array[()] = content
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|O", "fortran_order": False, "shape": ()}
    )
    pickled = pickle.dumps(array, protocol)
    if core != "numpy._core":  # what numpy 1 wrote; protocol 2 names have no length prefix
        pickled = pickled.replace(b"numpy._core", core.encode())
    path.write_bytes(buffer.getvalue() + pickled)
    return path


@pytest.mark.parametrize(
    ("protocol", "core"),
    [
        (2, "numpy.core"),
        (2, "numpy._core"),
        (3, "numpy.core"),
        (4, "numpy._core"),
        (5, "numpy._core"),
    ],
)
def test_a_saved_dictionary_is_read_whatever_wrote_it(tmp_path, protocol, core):
    found = numpy_pickle.load_dict(_save(tmp_path / "a.npy", CONTENT, protocol, core))
    assert numpy_pickle.items(found["language"]["ann"]) == CONTENT["language"]["ann"]
    assert numpy_pickle.items(found["language"]["task"]) == ["open_drawer", "push"]
    np.testing.assert_array_equal(found["language"]["emb"].content, CONTENT["language"]["emb"])
    windows = [numpy_pickle.items(pair) for pair in numpy_pickle.items(found["info"]["indx"])]
    assert windows == [[3, 7], [7, 9]]


def test_numpys_own_writer(tmp_path):
    np.save(tmp_path / "a.npy", CONTENT)  # pyright: ignore[reportArgumentType]
    assert set(numpy_pickle.load_dict(tmp_path / "a.npy")) == {"language", "info"}


def test_arrays_of_objects_and_fortran_order(tmp_path):
    objects = np.array([("a", 1), None], object)
    fortran = np.asfortranarray(np.arange(6).reshape(2, 3))
    found = numpy_pickle.load_dict(_save(tmp_path / "a.npy", {"o": objects, "f": fortran}, 3))
    assert numpy_pickle.items(found["o"]) == [("a", 1), None]
    assert numpy_pickle.items(found["f"]) == fortran.tolist()


class _Calls:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_that_calls_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = _save(tmp_path / "a.npy", {"language": _Calls()})
    with pytest.raises(errors.DataError, match=r"names (posix|nt)\.system.*not on the list"):
        numpy_pickle.load_dict(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("cut", [0, 5, 90, 140, 300])
def test_a_truncated_file_is_a_data_error(tmp_path, cut):
    path = _save(tmp_path / "a.npy", CONTENT)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(errors.DataError, match=r"a\.npy"):
        numpy_pickle.load_dict(path)


def test_flipped_bytes_never_raise_anything_else(tmp_path):
    data = _save(tmp_path / "a.npy", CONTENT).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        (tmp_path / "b.npy").write_bytes(damaged)
        try:
            found = numpy_pickle.load_dict(tmp_path / "b.npy")
            numpy_pickle.items(found["language"]["emb"])
        except (errors.DataError, KeyError, ValueError):  # the last two are the caller's to name
            pass


@pytest.mark.parametrize("content", [np.arange(3), np.array(["a"]), np.zeros((2, 2))])
def test_other_arrays_are_no_dictionary(tmp_path, content):
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(errors.DataError, match="not a saved dictionary"):
        numpy_pickle.load_dict(tmp_path / "a.npy")


def test_absent_file_is_named(tmp_path):
    with pytest.raises(errors.DataError, match=r"gone\.npy"):
        numpy_pickle.load_dict(tmp_path / "gone.npy")
