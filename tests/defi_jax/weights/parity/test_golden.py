"""`defi_golden_outputs.npz` holds what the official modules returned; it never changes."""

import io
import pathlib
import zipfile

import numpy as np
import pytest

from defi_jax import errors
from defi_jax.weights.parity import check
from defi_jax.weights.parity import golden as parity_golden

GOLDEN = pathlib.Path(__file__).with_name("defi_golden_outputs.npz")
pytestmark = pytest.mark.usefixtures("as_users_compile")
# The denoiser is computed at full size.
SLOW = "ddim_sample"
CASES = [
    pytest.param(names, marks=pytest.mark.slow if SLOW in names else (), id=names[0])
    for names, _ in parity_golden.GROUPS
]


def _vectors() -> dict[str, np.ndarray]:
    return parity_golden.read(str(GOLDEN))


@pytest.mark.parametrize("names", CASES)
def test_modules_equal_the_official_ones(names, tmp_path):
    path = tmp_path / "some.npz"
    np.savez(path, **{name: _vectors()[name] for name in names})
    results = check.check_file(path)
    assert [result.output for result in results] == list(names)
    for result in results:
        assert result.passed, str(result)
        # Well below the tolerance of the contract, so that a slow drift is seen.
        assert result.rel_l2 < 3e-6, str(result)


def test_every_recorded_vector_has_its_module():
    assert {name for names, _ in parity_golden.GROUPS for name in names} == _vectors().keys()


def test_a_changed_vector_fails(tmp_path):
    vectors = _vectors()
    np.savez(tmp_path / "a.npz", vq_zq=vectors["vq_zq"] * 1.001, vq_idx=vectors["vq_idx"] + 1)
    assert [result.passed for result in check.check_file(tmp_path / "a.npz")] == [False, False]


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, other=np.zeros(2), vq_zq=np.zeros(2))
    with pytest.raises(errors.UserError, match="unknown golden vector other"):
        check.check_file(path)
    np.savez(path)
    with pytest.raises(errors.DataError, match="without arrays"):
        check.check_file(path)
    np.savez(path, vq_zq=np.array([{"pickled": 1}], object))
    with pytest.raises(errors.DataError, match="no object of shape"):
        check.check_file(path)
    path.write_bytes(GOLDEN.read_bytes()[:-300])
    with pytest.raises(errors.DataError, match=r"not an \.npz"):
        check.check_file(path)
    data = bytearray(GOLDEN.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.DataError, match="CRC"):
        check.check_file(path)
    path.write_bytes(b"")
    with pytest.raises(errors.DataError, match=r"not an \.npz"):
        check.check_file(path)
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(path)
    with pytest.raises(errors.DataError, match=r"not an \.npz"):
        check.check_file(path)


def _header(shape: tuple[int, ...]) -> bytes:
    """An array of numpy that ends after its header."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vq_zq", b"no array"),
        ("vq_zq.npy", b"no array"),
        ("vq_zq.npy", _header((10**12,))),
        ("vq_zq.npy", _header((10**12,)) + bytes(8)),
        ("vq_zq.npy", _header((-1,)) + bytes(8)),
        ("vq_zq.npy", _header((2,)) + bytes(12)),
        ("vq_zq.npy", b"\x93NUMPY\x09\x00" + bytes(100)),
    ],
)
def test_members_that_are_no_arrays_are_named(name, content, tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr(name, content)
    with pytest.raises(errors.DataError, match=r"not an \.npz"):
        parity_golden.read(str(tmp_path / "bad.npz"))


def test_names_are_checked_before_anything_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("vq_zq.npy", b"no array")
        archive.writestr("other.npy", b"no array")
    with pytest.raises(errors.UserError, match="unknown golden vector other"):
        parity_golden.read(str(tmp_path / "bad.npz"))


def test_arrays_in_either_order_and_compressed_are_read(tmp_path):
    value = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "some.npz", vq_zq=value, vq_idx=np.int64(3))
        vectors = parity_golden.read(str(tmp_path / "some.npz"))
        np.testing.assert_array_equal(vectors["vq_zq"], value)
        assert vectors["vq_idx"] == 3
